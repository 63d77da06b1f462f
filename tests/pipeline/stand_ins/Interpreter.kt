// Stands in for LiteRT's Java interface. Nothing here computes.
package org.tensorflow.lite

import java.nio.ByteBuffer

class Interpreter(byteBuffer: ByteBuffer, options: Options) : AutoCloseable {
    class Options {
        fun setNumThreads(numThreads: Int): Options = throw NotImplementedError()
    }

    val signatureKeys: Array<String> get() = throw NotImplementedError()

    fun runSignature(inputs: Map<String, Any>, outputs: Map<String, Any>, signatureKey: String): Unit =
        throw NotImplementedError()

    override fun close() = throw NotImplementedError()
}
