// Runs a text classifier bundle made by edgedistill on Android, with ONNX Runtime.
//
// build.gradle.kts:  implementation("com.microsoft.onnxruntime:onnxruntime-android:1.22.0")
// beside this file:  WordPiece.kt
// assets:            model.onnx, vocab.txt, labels.txt, preprocessing.json (and golden.json for the replay test)
//
// Compiled on Linux against declarations in place of Android's; WordPiece.kt was run there against the student's ids.
// Replay golden.json in an instrumented test before you ship: for each sample, encode(text) must equal input_ids, and
// the logits must agree with answers.onnx.logits within 0.05. If the ids differ, the text processing differs; if only
// the logits do, the runtime.

package your.app

import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import java.nio.IntBuffer
import kotlin.math.exp
import org.json.JSONObject

class OnnxTextClassifier(context: Context, threads: Int = 1) : AutoCloseable {
    private val labels = context.assets.open("labels.txt").bufferedReader().readLines()
    private val tokenizer = WordPiece(context.assets.open("vocab.txt").bufferedReader().readLines())
    private val maxTokens =
        JSONObject(context.assets.open("preprocessing.json").bufferedReader().readText()).getInt("max_tokens")
    private val environment = OrtEnvironment.getEnvironment()
    private val session = OrtSession.SessionOptions().use { options ->
        options.setIntraOpNumThreads(threads)
        environment.createSession(context.assets.open("model.onnx").readBytes(), options)
    }

    /** The label with its probability, for the most likely class. */
    fun classify(text: String): Pair<String, Float> {
        val logits = logits(tokenizer.encode(text, maxTokens))
        val best = logits.indices.reduce { a, b -> if (logits[b] > logits[a]) b else a }
        val sum = logits.map { exp((it - logits[best]).toDouble()) }.sum()
        return labels[best] to (1.0 / sum).toFloat()
    }

    /** Raw class scores for token ids, in the order of labels.txt. The file takes every length: nothing is padded. */
    fun logits(ids: IntArray): FloatArray {
        val answer = FloatArray(labels.size)
        tensor(ids).use { tokens ->
            tensor(IntArray(ids.size) { 1 }).use { mask ->
                session.run(mapOf("input_ids" to tokens, "attention_mask" to mask)).use { result ->
                    (result.get("logits").get() as OnnxTensor).floatBuffer.get(answer)
                }
            }
        }
        return answer
    }

    override fun close() = session.close()

    private fun tensor(values: IntArray) =
        OnnxTensor.createTensor(environment, IntBuffer.wrap(values), longArrayOf(1, values.size.toLong()))
}
