"""A chat over retrieved texts, with LangChain, that learns which text was of use. See examples/README.md."""

import argparse

from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_embedding_studio import EmbeddingStudioRetriever

from embedding_studio.client import Client

PROMPT = ChatPromptTemplate.from_template("Answer from these texts alone.\n\n{texts}\n\nQuestion: {question}")


def main() -> None:
    """Answer one question; say which text was of use."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--service", default="http://127.0.0.1:8000")
    options.add_argument("--user", default="ann")
    options.add_argument("--useful", type=int, metavar="N", help="the text that was of use, from 1 on")
    options.add_argument("question")
    asked = options.parse_args()

    with Client(asked.service, timeout=60) as client:
        retriever = EmbeddingStudioRetriever(client=client, k=4)
        documents = retriever.invoke(asked.question, user_id=asked.user)
        numbered = [f"[{number}] {each.page_content}" for number, each in enumerate(documents, 1)]
        # Stands for a model, such as ChatOpenAI(), and says what any would: the nearest text.
        model = FakeListChatModel(
            responses=[f"{documents[0].page_content} [1]" if documents else "I do not know."]
        )
        chain = PROMPT | model | StrOutputParser()
        print("\n".join(numbered))
        print(chain.invoke({"texts": "\n".join(numbered), "question": asked.question}))
        if asked.useful:
            retriever.clicked(documents[asked.useful - 1])


if __name__ == "__main__":
    main()
