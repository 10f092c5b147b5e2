"""NVIDIA's own builder as a judge of exported engines: TensorRT for RTX, which compiles without a GPU.

It tells the kernels that its compiler makes of an ONNX file: for SM80, SM86 and SM89, by TensorRT 11's compiler. An
Orin is SM87, and JetPack 6 brings TensorRT 10.3, so the counts are indicative for an Orin and no promise.
"""
