// Stands in for ONNX Runtime's Java interface. Nothing here computes.
// What is Closeable here is AutoCloseable there, which Kotlin before 1.8 does not `use`.
package ai.onnxruntime

import java.io.Closeable
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.util.Optional

interface OnnxValue : Closeable

abstract class OnnxTensor : OnnxValue {
    abstract val floatBuffer: FloatBuffer

    companion object {
        @JvmStatic
        fun createTensor(env: OrtEnvironment, data: IntBuffer, shape: LongArray): OnnxTensor =
            throw NotImplementedError()
    }
}

abstract class OrtEnvironment : Closeable {
    abstract fun createSession(modelArray: ByteArray, options: OrtSession.SessionOptions): OrtSession

    companion object {
        @JvmStatic
        fun getEnvironment(): OrtEnvironment = throw NotImplementedError()
    }
}

abstract class OrtSession : Closeable {
    abstract fun run(inputs: Map<String, OnnxTensor>): Result

    class SessionOptions : Closeable {
        fun setIntraOpNumThreads(numThreads: Int): Unit = throw NotImplementedError()

        override fun close() = throw NotImplementedError()
    }

    abstract class Result : Closeable {
        abstract fun get(key: String): Optional<OnnxValue>
    }
}
