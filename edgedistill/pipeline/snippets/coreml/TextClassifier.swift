// Runs a text classifier bundle made by edgedistill on iOS 17 / macOS 14 and later.
//
// THIS FILE WAS NOT RUN ON APPLE HARDWARE. The model file was proved on Linux, number by number and by computing it;
// this code was written beside it, compiled on Linux, and its tokenizer run there.
// Replay golden.json first: `try TextClassifier().replayGolden()` in a unit test.
//
// Add to the target: model.mlpackage (Xcode compiles it), vocab.txt, labels.txt (and golden.json for the replay).
// For each sample, encode(text) must equal input_ids, and the logits must agree with answers.coreml.logits within 0.05
// of the largest. If the ids differ, the text processing differs; if only the logits do, the runtime.

import CoreML
import Foundation

public final class TextClassifier {
    public enum Failure: Error { case missing(String), ids(String), logits(String, Float) }

    private let model: MLModel
    private let labels: [String]
    private let tokenizer: WordPiece
    private let bundle: Bundle
    private let flexible: Bool
    /// The most tokens that the model takes.
    public let maxTokens: Int

    public init(bundle: Bundle = .main, units: MLComputeUnits = .all) throws {
        let options = MLModelConfiguration()
        options.computeUnits = units
        self.bundle = bundle
        model = try MLModel(contentsOf: TextClassifier.file("model", "mlmodelc", bundle), configuration: options)
        labels = try TextClassifier.lines("labels", bundle)
        tokenizer = try WordPiece(TextClassifier.lines("vocab", bundle))
        guard let ids = model.modelDescription.inputDescriptionsByName["input_ids"]?.multiArrayConstraint else {
            throw Failure.missing("input_ids")
        }
        flexible = ids.shapeConstraint.type == .range
        maxTokens = ids.shape[1].intValue  // of a range, this is its upper end
    }

    /// The label with its probability, for the most likely class.
    public func classify(_ text: String) throws -> (label: String, probability: Float) {
        let logits = try self.logits(tokenizer.encode(text, maxTokens: maxTokens))
        let best = logits.indices.max { logits[$0] < logits[$1] }!
        let sum = logits.reduce(0.0) { $0 + exp(Double($1 - logits[best])) }
        return (labels[best], Float(1 / sum))
    }

    /// Raw class scores for token ids, in the order of labels.txt.
    public func logits(_ ids: [Int32]) throws -> [Float] {
        let length = flexible ? ids.count : maxTokens
        let padded = try MLMultiArray(shape: [1, NSNumber(value: length)], dataType: .int32)
        let mask = try MLMultiArray(shape: [1, NSNumber(value: length)], dataType: .int32)
        for place in 0..<length {
            padded[place] = NSNumber(value: place < ids.count ? ids[place] : tokenizer.pad)
            mask[place] = place < ids.count ? 1 : 0
        }
        let feeds = try MLDictionaryFeatureProvider(dictionary: ["input_ids": padded, "attention_mask": mask])
        guard let answer = try model.prediction(from: feeds).featureValue(for: "logits")?.multiArrayValue else {
            throw Failure.missing("logits")
        }
        return (0..<answer.count).map { answer[$0].floatValue }
    }

    /// The largest difference of a logit from golden.json, as a share of the sample's largest logit.
    @discardableResult
    public func replayGolden(tolerance: Float = 0.05) throws -> Float {
        let data = try Data(contentsOf: TextClassifier.file("golden", "json", bundle))
        var worst: Float = 0
        for sample in try JSONDecoder().decode([Golden].self, from: data) {
            guard tokenizer.encode(sample.text, maxTokens: maxTokens) == sample.input_ids else {
                throw Failure.ids(sample.text)
            }
            guard let expected = sample.answers["coreml"]?.logits else { throw Failure.missing("answers.coreml") }
            let found = try logits(sample.input_ids)
            let largest = expected.map(abs).max()!
            let difference = zip(found, expected).map { abs($0 - $1) }.max()! / largest
            if !(difference <= tolerance) { throw Failure.logits(sample.text, difference) }
            worst = max(worst, difference)
        }
        return worst
    }

    private struct Golden: Decodable {
        struct Answer: Decodable { let logits: [Float] }
        let text: String
        let input_ids: [Int32]
        let answers: [String: Answer]
    }

    private static func file(_ name: String, _ suffix: String, _ bundle: Bundle) throws -> URL {
        guard let url = bundle.url(forResource: name, withExtension: suffix) else {
            throw Failure.missing("\(name).\(suffix)")
        }
        return url
    }

    /// The lines of a text file, cut at newlines only: a piece may be any other character.
    private static func lines(_ name: String, _ bundle: Bundle) throws -> [String] {
        let text = try String(contentsOf: file(name, "txt", bundle), encoding: .utf8)
        var found: [String] = [], line = String.UnicodeScalarView()
        for scalar in text.unicodeScalars {
            if scalar == "\n" {
                found.append(String(line))
                line = String.UnicodeScalarView()
            } else {
                line.append(scalar)
            }
        }
        return line.isEmpty ? found : found + [String(line)]
    }
}

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
