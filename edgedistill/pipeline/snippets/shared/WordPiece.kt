package your.app

import java.text.Normalizer

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
