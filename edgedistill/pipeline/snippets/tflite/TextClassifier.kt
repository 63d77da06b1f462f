// Runs a text classifier bundle made by edgedistill on Android.
//
// build.gradle.kts:  implementation("com.google.ai.edge.litert:litert:1.4.0")
//                    android { androidResources { noCompress += "tflite" } }
// assets:            model.tflite, vocab.txt, labels.txt (and golden.json for the replay test)
//
// Replay golden.json in an instrumented test before you ship: for each sample, encode(text) must equal input_ids, and
// the logits must agree with answers.tflite.logits within 0.05. If the ids differ, the text processing differs; if only
// the logits do, the runtime.

package your.app

import android.content.Context
import java.io.FileInputStream
import java.nio.channels.FileChannel
import java.text.Normalizer
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
        val best = logits.indices.maxByOrNull { logits[it] }!!
        val sum = logits.sumOf { exp((it - logits[best]).toDouble()) }
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
            "length_$length",
        )
        return answer[0]
    }

    override fun close() = interpreter.close()
}

/** BERT's text processing: lower case without accents, split at spaces and punctuation, then longest match first. */
class WordPiece(vocabulary: List<String>) {
    private val ids = vocabulary.withIndex().associate { (index, piece) -> piece to index }
    private val unknown = ids.getValue("[UNK]")
    val pad = ids.getValue("[PAD]")

    fun encode(text: String, maxTokens: Int): IntArray {
        val pieces = words(text).flatMap(::pieces).take(maxTokens - 2)
        return intArrayOf(ids.getValue("[CLS]"), *pieces.toIntArray(), ids.getValue("[SEP]"))
    }

    private fun words(text: String): List<String> {
        val spaced = StringBuilder()
        text.codePoints().forEach { code ->
            val type = Character.getType(code)
            when {
                code == 0 || code == 0xFFFD -> {}
                isSpace(code) -> spaced.append(' ')
                type in INVISIBLE -> {}
                isCjk(code) -> spaced.append(' ').appendCodePoint(code).append(' ')
                else -> spaced.appendCodePoint(code)
            }
        }
        val plain = StringBuilder()
        Normalizer.normalize(spaced, Normalizer.Form.NFD).codePoints().forEach { code ->
            if (Character.getType(code) != Character.NON_SPACING_MARK.toInt()) plain.appendCodePoint(code)
        }
        val split = StringBuilder()
        plain.codePoints().forEach { upper ->
            val code = Character.toLowerCase(upper)
            if (isPunctuation(code)) split.append(' ').appendCodePoint(code).append(' ') else split.appendCodePoint(code)
        }
        return split.split(' ').filter { it.isNotEmpty() }
    }

    private fun pieces(word: String): List<Int> {
        if (word.codePointCount(0, word.length) > 100) return listOf(unknown)
        val found = mutableListOf<Int>()
        var start = 0
        while (start < word.length) {
            val prefix = if (start == 0) "" else "##"
            val end = (word.length downTo start + 1).firstOrNull { prefix + word.substring(start, it) in ids }
                ?: return listOf(unknown)
            found += ids.getValue(prefix + word.substring(start, end))
            start = end
        }
        return found
    }

    private fun isSpace(code: Int) =
        code == 9 || code == 10 || code == 13 || Character.isSpaceChar(code)

    private companion object {
        val INVISIBLE = setOf(
            Character.CONTROL, Character.FORMAT, Character.PRIVATE_USE, Character.SURROGATE
        ).map { it.toInt() }
    }

    private fun isCjk(code: Int) =
        code in 0x4E00..0x9FFF || code in 0x3400..0x4DBF || code in 0x20000..0x2A6DF || code in 0x2A700..0x2B73F ||
            code in 0x2B740..0x2B81F || code in 0x2B920..0x2CEAF || code in 0xF900..0xFAFF || code in 0x2F800..0x2FA1F

    private fun isPunctuation(code: Int): Boolean {
        if (code in 33..47 || code in 58..64 || code in 91..96 || code in 123..126) return true
        return when (Character.getType(code)) {
            Character.CONNECTOR_PUNCTUATION.toInt(), Character.DASH_PUNCTUATION.toInt(),
            Character.START_PUNCTUATION.toInt(), Character.END_PUNCTUATION.toInt(),
            Character.INITIAL_QUOTE_PUNCTUATION.toInt(), Character.FINAL_QUOTE_PUNCTUATION.toInt(),
            Character.OTHER_PUNCTUATION.toInt() -> true
            else -> false
        }
    }
}
