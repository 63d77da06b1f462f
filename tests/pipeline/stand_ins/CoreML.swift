// A stand-in for Apple's framework where there is none: the declarations that TextClassifier.swift uses, as its
// documentation gives them, so that a compiler on Linux can check the types of that file. Nothing here computes.

import Foundation

public enum MLComputeUnits: Int { case cpuOnly, cpuAndGPU, all, cpuAndNeuralEngine }
public enum MLMultiArrayDataType: Int { case double, float32, float16, int32 }
public enum MLMultiArrayShapeConstraintType: Int { case unspecified, enumerated, range }

open class MLModelConfiguration {
    public init() {}
    open var computeUnits: MLComputeUnits { get { fatalError() } set {} }
}

open class MLMultiArrayShapeConstraint {
    open var type: MLMultiArrayShapeConstraintType { fatalError() }
}

open class MLMultiArrayConstraint {
    open var shape: [NSNumber] { fatalError() }
    open var shapeConstraint: MLMultiArrayShapeConstraint { fatalError() }
}

open class MLFeatureDescription {
    open var multiArrayConstraint: MLMultiArrayConstraint? { fatalError() }
}

open class MLModelDescription {
    open var inputDescriptionsByName: [String: MLFeatureDescription] { fatalError() }
}

open class MLMultiArray {
    public init(shape: [NSNumber], dataType: MLMultiArrayDataType) throws {}
    open var count: Int { fatalError() }
    open subscript(idx: Int) -> NSNumber { get { fatalError() } set {} }
}

open class MLFeatureValue {
    open var multiArrayValue: MLMultiArray? { fatalError() }
}

public protocol MLFeatureProvider {
    func featureValue(for featureName: String) -> MLFeatureValue?
}

open class MLDictionaryFeatureProvider: MLFeatureProvider {
    public init(dictionary: [String: Any]) throws {}
    open func featureValue(for featureName: String) -> MLFeatureValue? { fatalError() }
}

open class MLModel {
    public init(contentsOf url: URL, configuration: MLModelConfiguration) throws {}
    open var modelDescription: MLModelDescription { fatalError() }
    open func prediction(from input: MLFeatureProvider) throws -> MLFeatureProvider { fatalError() }
}
