// Stands in for Android where there is none: the declarations that the bundle's Kotlin uses, so that a compiler can
// check the types of that. Nothing here computes.
package android.content

import java.io.Closeable
import java.io.FileDescriptor
import java.io.InputStream

abstract class Context {
    abstract val assets: AssetManager
}

abstract class AssetManager {
    abstract fun open(fileName: String): InputStream
    abstract fun openFd(fileName: String): AssetFileDescriptor
}

abstract class AssetFileDescriptor : Closeable {
    abstract val fileDescriptor: FileDescriptor
    abstract val startOffset: Long
    abstract val declaredLength: Long
}
