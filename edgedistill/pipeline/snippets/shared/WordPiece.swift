import Foundation

/// BERT's text processing: lower case without accents, split at spaces and punctuation, then longest match first.
public struct WordPiece {
    // Keys are UTF-8 bytes: Swift takes strings for equal that Unicode can convert into one another, a vocabulary not.
    private let ids: [[UInt8]: Int32]
    private let unknown: Int32
    private let start: Int32
    private let end: Int32
    public let pad: Int32

    public init(_ vocabulary: [String]) {
        var ids: [[UInt8]: Int32] = [:]
        for (index, piece) in vocabulary.enumerated() { ids[Array(piece.utf8)] = Int32(index) }
        self.ids = ids
        unknown = ids[Array("[UNK]".utf8)]!
        start = ids[Array("[CLS]".utf8)]!
        end = ids[Array("[SEP]".utf8)]!
        pad = ids[Array("[PAD]".utf8)]!
    }

    public func encode(_ text: String, maxTokens: Int) -> [Int32] {
        let pieces = words(text).flatMap(self.pieces).prefix(maxTokens - 2)
        return [start] + pieces + [end]
    }

    private func words(_ text: String) -> [[Unicode.Scalar]] {
        var spaced = String.UnicodeScalarView()
        for scalar in text.unicodeScalars where scalar.value != 0 && scalar.value != 0xFFFD {
            if isSpace(scalar) {
                spaced.append(" ")
            } else if isCjk(scalar.value) {
                spaced.append(" ")
                spaced.append(scalar)
                spaced.append(" ")
            } else if !isInvisible(scalar) {
                spaced.append(scalar)
            }
        }
        var split: [[Unicode.Scalar]] = [], word: [Unicode.Scalar] = []
        func close() {
            if !word.isEmpty { split.append(word) }
            word = []
        }
        for scalar in String(spaced).decomposedStringWithCanonicalMapping.unicodeScalars
        where scalar.properties.generalCategory != .nonspacingMark {
            for lower in scalar.properties.lowercaseMapping.unicodeScalars {
                if lower == " " {
                    close()
                } else if isPunctuation(lower) {
                    close()
                    split.append([lower])
                } else {
                    word.append(lower)
                }
            }
        }
        close()
        return split
    }

    private func pieces(_ word: [Unicode.Scalar]) -> [Int32] {
        if word.count > 100 { return [unknown] }
        var found: [Int32] = [], from = 0
        while from < word.count {
            let prefix: [UInt8] = from == 0 ? [] : Array("##".utf8)
            var to = word.count, longest: Int32?
            while to > from, longest == nil {
                var view = String.UnicodeScalarView()
                view.append(contentsOf: word[from..<to])
                longest = ids[prefix + Array(String(view).utf8)]
                if longest == nil { to -= 1 }
            }
            guard let id = longest else { return [unknown] }
            found.append(id)
            from = to
        }
        return found
    }

    private func isSpace(_ scalar: Unicode.Scalar) -> Bool {
        if scalar == "\t" || scalar == "\n" || scalar == "\r" { return true }
        switch scalar.properties.generalCategory {
        case .spaceSeparator, .lineSeparator, .paragraphSeparator: return true
        default: return false
        }
    }

    private func isInvisible(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.properties.generalCategory {
        case .control, .format, .privateUse, .surrogate: return true
        default: return false
        }
    }

    private func isCjk(_ code: UInt32) -> Bool {
        switch code {
        case 0x4E00...0x9FFF, 0x3400...0x4DBF, 0x20000...0x2A6DF, 0x2A700...0x2B73F, 0x2B740...0x2B81F,
            0x2B920...0x2CEAF, 0xF900...0xFAFF, 0x2F800...0x2FA1F:
            return true
        default: return false
        }
    }

    private func isPunctuation(_ scalar: Unicode.Scalar) -> Bool {
        switch scalar.value {
        case 33...47, 58...64, 91...96, 123...126: return true
        default: break
        }
        switch scalar.properties.generalCategory {
        case .connectorPunctuation, .dashPunctuation, .openPunctuation, .closePunctuation, .initialPunctuation,
            .finalPunctuation, .otherPunctuation:
            return true
        default: return false
        }
    }
}

/// The lines of a file, cut at newlines only: a piece of a vocabulary may be any other character.
func lines(of data: Data) -> [String] {
    var found: [String] = [], line = String.UnicodeScalarView()
    for scalar in String(decoding: data, as: UTF8.self).unicodeScalars {
        if scalar == "\n" {
            found.append(String(line))
            line = String.UnicodeScalarView()
        } else {
            line.append(scalar)
        }
    }
    return line.isEmpty ? found : found + [String(line)]
}
