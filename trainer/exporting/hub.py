"""Upload of an exported folder to a model hub by huggingface_hub. HF_ENDPOINT names the hub, HF_TOKEN the rights."""

import os
import re
from pathlib import Path

from data_prep.common.environment import client_problems
from data_prep.common.errors import Failed
from data_prep.common.files import check
from data_prep.common.secrets import secret, without

_LATER = ": without a network copy it to a machine that has one, and run `hf upload OWNER/NAME FOLDER` there"
_ID = re.compile(r"[\w.-]+/[\w.-]+")


class Hub:
    """A model repository to write to. Raises BadInput, before any work, for an id that is none or without a token."""

    def __init__(self, repository: str):
        self.repository, self.token = repository, secret("HF_TOKEN")
        # huggingface_hub makes a client when all work is done
        check(client_problems(os.environ.get("HF_ENDPOINT") or "https://huggingface.co"))
        problems = [] if _ID.fullmatch(repository) else [f"--push {repository}: is not of the form OWNER/NAME"]
        if not self.token:
            problems.append("--push: HF_TOKEN is not set; put a token that may write into the environment or .env")
        check(problems)

    def push(self, folder: Path) -> str:
        """Uploads the folder in one commit, into a new private repository where there is none; returns its address.
        Raises Failed with what the hub said, without the token."""
        from huggingface_hub import HfApi

        api = HfApi(token=self.token)
        try:
            api.create_repo(self.repository, private=True, exist_ok=True)
            commit = api.upload_folder(
                repo_id=self.repository, folder_path=str(folder), commit_message="Export of embedfleet"
            )
        except Exception as error:  # of httpx or httpx2, by the version of huggingface_hub
            answer = without(" ".join(str(error.__cause__ or error).split()), self.token)
            raise Failed(
                f"--push {self.repository}: the hub did not take it ({answer}); {folder} is whole{_LATER}"
            ) from None
        return str(commit.commit_url)
