// Runs a text classifier bundle made by edgedistill with llama.cpp, on iOS 16 / macOS 13 and later, and on Linux.
//
// Package: llama.cpp's XCFramework (github.com/ggml-org/llama.cpp, build-xcframework.sh), whose module is `llama`.
// Add to the target: WordPiece.swift, model.gguf, vocab.txt, labels.txt, preprocessing.json (and golden.json for the
// replay).
//
// This file was compiled and run on Linux against llama.cpp, where it replayed golden.json; NOT ON APPLE HARDWARE. Do
// that first: `try LlamaTextClassifier().replayGolden()` in a unit test. For each sample, encode(text) must equal
// input_ids, and the logits must agree with answers.gguf.logits within 0.05 of the largest. If the ids differ, the text
// processing differs; if only the logits do, the runtime.

import Foundation
import llama

public final class LlamaTextClassifier {
    public enum Failure: Error { case model(String), tokens(Int), runtime, ids(String), logits(String, Float) }

    private let model: OpaquePointer
    private let context: OpaquePointer
    private let labels: [String]
    private let tokenizer: WordPiece
    private let folder: URL
    /// The most tokens that the model was trained for.
    public let maxTokens: Int

    /// - Parameter folder: where the files of the bundle lie; an app has them among its resources.
    public init(folder: URL = Bundle.main.resourceURL!, threads: Int32 = 1) throws {
        struct Preprocessing: Decodable { let max_tokens: Int }
        self.folder = folder
        func read(_ name: String) throws -> Data { try Data(contentsOf: folder.appendingPathComponent(name)) }
        maxTokens = try JSONDecoder().decode(Preprocessing.self, from: read("preprocessing.json")).max_tokens
        labels = lines(of: try read("labels.txt"))
        tokenizer = WordPiece(lines(of: try read("vocab.txt")))
        let path = folder.appendingPathComponent("model.gguf").path
        llama_backend_init()
        var loading = llama_model_default_params()
        loading.n_gpu_layers = 0
        guard let model = llama_model_load_from_file(path, loading) else { throw Failure.model(path) }
        var settings = llama_context_default_params()
        settings.n_ctx = UInt32(maxTokens)
        settings.n_batch = UInt32(maxTokens)
        settings.n_ubatch = UInt32(maxTokens)
        settings.n_threads = threads
        settings.n_threads_batch = threads
        settings.embeddings = true
        guard let context = llama_init_from_model(model, settings) else {
            llama_model_free(model)
            throw Failure.model(path)
        }
        self.model = model
        self.context = context
    }

    deinit {
        llama_free(context)
        llama_model_free(model)
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
        guard (1...maxTokens).contains(ids.count) else { throw Failure.tokens(ids.count) }
        var batch = llama_batch_init(Int32(ids.count), 0, 1)
        defer { llama_batch_free(batch) }
        batch.n_tokens = Int32(ids.count)
        for (place, id) in ids.enumerated() {
            batch.token[place] = id
            batch.pos[place] = Int32(place)
            batch.n_seq_id[place] = 1
            batch.seq_id[place]![0] = 0
            batch.logits[place] = 1
        }
        guard llama_encode(context, batch) == 0, let found = llama_get_embeddings_seq(context, 0) else {
            throw Failure.runtime
        }
        return Array(UnsafeBufferPointer(start: found, count: labels.count))
    }

    /// The largest difference of a logit from golden.json, as a share of the sample's largest logit.
    @discardableResult
    public func replayGolden(tolerance: Float = 0.05) throws -> Float {
        struct Answer: Decodable { let logits: [Float] }
        struct Golden: Decodable {
            let text: String
            let input_ids: [Int32]
            let answers: [String: Answer]
        }
        let data = try Data(contentsOf: folder.appendingPathComponent("golden.json"))
        var worst: Float = 0
        for sample in try JSONDecoder().decode([Golden].self, from: data) {
            guard tokenizer.encode(sample.text, maxTokens: maxTokens) == sample.input_ids else {
                throw Failure.ids(sample.text)
            }
            guard let expected = sample.answers["gguf"]?.logits else { throw Failure.model("answers.gguf") }
            let found = try logits(sample.input_ids)
            let largest = expected.map(abs).max()!
            let difference = zip(found, expected).map { abs($0 - $1) }.max()! / largest
            if !(difference <= tolerance) { throw Failure.logits(sample.text, difference) }
            worst = max(worst, difference)
        }
        return worst
    }
}
