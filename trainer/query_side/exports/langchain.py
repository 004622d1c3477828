"""A query adapter in LangChain: AdaptedEmbeddings(OpenAIEmbeddings(…), FOLDER). Never imports torch."""

from pathlib import Path

from langchain_core.embeddings import Embeddings

from trainer.query_side.adapter import QueryAdapter


class AdaptedEmbeddings(Embeddings):
    """Embeds documents as `embeddings` does, and queries so and through an adapter of their model.

    `embeddings` are of the model that made the store's vectors, with as many numbers as the adapter maps. A query's
    vector has length 1.
    """

    def __init__(self, embeddings: Embeddings, folder: str | Path):
        """folder: of trainer.adapt_queries. Raises BadInput."""
        self.embeddings, self.adapter = embeddings, QueryAdapter.load(folder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.embeddings.embed_documents(texts)

    def embed_query(self, text: str) -> list[float]:
        """Raises ValueError for vectors of another size than the adapter's."""
        return self.adapter(self.embeddings.embed_query(text)).tolist()

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await self.embeddings.aembed_documents(texts)

    async def aembed_query(self, text: str) -> list[float]:
        return self.adapter(await self.embeddings.aembed_query(text)).tolist()
