"""Exports of a query adapter: folders for numpy and sentence-transformers, an ONNX graph, LangChain."""
