// Runs a text classifier bundle made by edgedistill on iOS 17 / macOS 14 and later.
//
// THIS FILE WAS NOT RUN ON APPLE HARDWARE. The model file was proved on Linux, number by number and by computing it;
// this code was written beside it and compiled on Linux; WordPiece.swift was run there against the student's ids.
// Replay golden.json first: `try TextClassifier().replayGolden()` in a unit test.
//
// Add to the target: WordPiece.swift, model.mlpackage (Xcode compiles it), vocab.txt, labels.txt (and golden.json for
// the replay).
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
        labels = lines(of: try Data(contentsOf: TextClassifier.file("labels", "txt", bundle)))
        tokenizer = WordPiece(lines(of: try Data(contentsOf: TextClassifier.file("vocab", "txt", bundle))))
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
}
