"""Uploading an exported folder to the Hugging Face Hub."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError


class PushError(RuntimeError):
    """The server refused or could not be reached."""


def push(folder: Path, repository: str, private: bool, endpoint: str | None = None) -> str:
    """Upload a folder's files, creating the repository if needed; returns its address.

    The token comes from `hf auth login` or HF_TOKEN.

    Args:
        repository: USER/NAME.
        endpoint: address of a server other than the Hub.

    Raises:
        PushError: the upload failed; the local folder is complete.
    """
    hub = HfApi(endpoint=endpoint)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        done = hub.upload_folder(repo_id=repository, folder_path=folder, commit_message="Export of a trained network")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise PushError(f"{repository}: not pushed: {error}; the folder {folder} is complete") from error
    return str(done.repo_url) if getattr(done, "repo_url", None) else repository
