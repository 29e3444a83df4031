"""Putting an exported folder on the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError


class PushError(RuntimeError):
    """The server refuses, or cannot be reached."""


def push(folder: Path, repository: str, private: bool, endpoint: str | None = None) -> str:
    """Upload the files of a folder, and make the repository if it is not there; returns its address.

    The token is the one that `hf auth login` or HF_TOKEN gives.

    Args:
        repository: USER/NAME.
        endpoint: of another server than the Hub's own.

    Raises:
        PushError: the folder is whole, and not there.
    """
    hub = HfApi(endpoint=endpoint)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of a trained network")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise PushError(f"{repository}: not pushed: {error}; the folder {folder} is whole") from error
    return str(done.repo_url) if getattr(done, "repo_url", None) else repository
