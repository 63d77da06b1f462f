// Runs a text classifier bundle made by edgedistill on Android.
//
// build.gradle.kts:  implementation("com.google.ai.edge.litert:litert:1.4.0")
//                    android { androidResources { noCompress += "tflite" } }
// beside this file:  WordPiece.kt
// assets:            model.tflite, vocab.txt, labels.txt (and golden.json for the replay test)
//
// Compiled on Linux against declarations in place of Android's; WordPiece.kt was run there against the student's ids.
// Replay golden.json in an instrumented test before you ship: for each sample, encode(text) must equal input_ids, and
// the logits must agree with answers.tflite.logits within 0.05. If the ids differ, the text processing differs; if only
// the logits do, the runtime.

package your.app

import android.content.Context
import java.io.FileInputStream
import java.nio.channels.FileChannel
import kotlin.math.exp
import org.tensorflow.lite.Interpreter

class TextClassifier(context: Context, threads: Int = 1) : AutoCloseable {
    private val labels = context.assets.open("labels.txt").bufferedReader().readLines()
    private val tokenizer = WordPiece(context.assets.open("vocab.txt").bufferedReader().readLines())
    private val interpreter = context.assets.openFd("model.tflite").use { file ->
        val bytes = FileInputStream(file.fileDescriptor).channel
            .map(FileChannel.MapMode.READ_ONLY, file.startOffset, file.declaredLength)
        Interpreter(bytes, Interpreter.Options().setNumThreads(threads))
    }
    private val lengths = interpreter.signatureKeys.map { it.removePrefix("length_").toInt() }.sorted()

    /** The label with its probability, for the most likely class. */
    fun classify(text: String): Pair<String, Float> {
        val logits = logits(tokenizer.encode(text, lengths.last()))
        val best = logits.indices.reduce { a, b -> if (logits[b] > logits[a]) b else a }
        val sum = logits.map { exp((it - logits[best]).toDouble()) }.sum()
        return labels[best] to (1.0 / sum).toFloat()
    }

    /** Raw class scores for token ids, in the order of labels.txt. */
    fun logits(ids: IntArray): FloatArray {
        val length = lengths.first { it >= ids.size }
        val padded = IntArray(length) { if (it < ids.size) ids[it] else tokenizer.pad }
        val mask = IntArray(length) { if (it < ids.size) 1 else 0 }
        val answer = arrayOf(FloatArray(labels.size))
        interpreter.runSignature(
            mapOf("input_ids" to arrayOf(padded), "attention_mask" to arrayOf(mask)),
            mapOf("logits" to answer),
            "length_$length"
        )
        return answer[0]
    }

    override fun close() = interpreter.close()
}
