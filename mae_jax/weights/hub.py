"""Models on the Hugging Face Hub, at `hf:ORG/NAME[/FILE][@REVISION]`, by `huggingface_hub`.

Only weights and the JSON files that describe them are downloaded: never code. The cache, the token
and the endpoint are those of `huggingface_hub`. With HF_HUB_OFFLINE=1 only the cache is used.
"""

import contextlib
import fnmatch
import logging
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import NamedTuple

from etils import epath

from mae_jax.weights import tensor_files

_log = logging.getLogger(__name__)
DESCRIPTIONS = ("config.json", "preprocessor_config.json")
# The files of a model, which an upload replaces; the others of a repository stay.
MODEL = (*DESCRIPTIONS, "model*.safetensors*", "pytorch_model*.bin*")


class Address(NamedTuple):
    """The place of a model on the Hub."""

    repository: str  # ORG/NAME
    file: str = ""  # "" stands for the file or the files that a folder of weights has
    revision: str = ""  # a branch, a tag or a commit; "" is the main branch

    def __str__(self) -> str:
        file = f"/{self.file}" if self.file else ""
        return f"hf:{self.repository}{file}" + (f"@{self.revision}" if self.revision else "")


class Download(NamedTuple):
    """A model in the cache."""

    path: Path  # a folder; or a file, if it was asked for or has no config.json beside it
    address: Address  # with the commit as its revision


def is_address(text: str) -> bool:
    return text.startswith("hf:")


def parse(text: str) -> Address:
    """Return the parts of an address; raise ValueError if the text has another form."""
    match = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:/([^@/][^@]*))?(?:@(.+))?", text)
    if not match or ".." in (match[2] or "").split("/"):
        raise ValueError(f"{text!r} is not hf:ORG/NAME, hf:ORG/NAME/FILE, or one of them @REVISION")
    return Address(match[1], match[2] or "", match[3] or "")


def download(text: str) -> Download:
    """Return the model at an address; download what the cache lacks, and log the digests.

    Raises:
      ValueError: there is no such model, it may not be read, a file is damaged, or the Hub cannot
        be reached and the cache has not all files.
      ImportError: `huggingface_hub` is not installed.
    """
    address = parse(text)
    names = [f"{name}{end}" for name in tensor_files.IN_FOLDER for end in ("", tensor_files.INDEX)]
    for name in [address.file] if address.file else names:
        if weights := _get(address, name):
            break
    else:
        raise ValueError(f"{text} has no {address.file or ' or '.join(tensor_files.IN_FOLDER)}")
    folder = PurePosixPath(name).parent
    commit = weights.parents[len(folder.parts)].name  # .../snapshots/COMMIT/FOLDER/NAME
    address = address._replace(revision=commit)
    settings, _ = (_get(address, str(folder / x)) for x in DESCRIPTIONS)
    files = [weights]
    if name.endswith(tensor_files.INDEX):
        files = [_get(address, str(folder / part)) for part in tensor_files.parts(weights)]
    for file in filter(None, files):
        _log.info("%s: SHA-256 %s of %s", address, _verified(file), file.name)
    whole = not address.file and (settings or len(files) > 1)
    return Download(weights.parent if whole else weights, address)


class Contents(NamedTuple):
    """What a repository holds before an upload."""

    files: frozenset[str] = frozenset()
    private: bool | None = None  # None: there is no repository yet

    @property
    def has_model(self) -> bool:
        return any(fnmatch.filter(self.files, pattern) for pattern in MODEL)


def contents(address: Address) -> Contents:
    """Return what a repository holds; ValueError if the Hub does not tell."""
    hub, revision = client(), address.revision or None
    with one_sentence(address):
        try:
            info = hub.HfApi().model_info(address.repository, revision=revision)
        except hub.errors.GatedRepoError:
            raise
        except hub.errors.RepositoryNotFoundError:
            return Contents()
    return Contents(frozenset(x.rfilename for x in info.siblings or ()), bool(info.private))


def upload(folder: Path, address: Address, private: bool = False) -> str:
    """Upload the files of a folder in place of a model, and return the commit.

    A repository is made if there is none. Its other files stay.
    """
    hub, revision = client(), address.revision or None
    with one_sentence(address):
        api = hub.HfApi()
        api.create_repo(address.repository, private=private or None, exist_ok=True)
        if revision:
            api.create_branch(address.repository, branch=revision, exist_ok=True)
        commit = api.upload_folder(
            repo_id=address.repository,
            folder_path=folder,
            revision=revision,
            commit_message="Model written by mae_jax",
            delete_patterns=list(MODEL),
        )
    return commit.oid


def client() -> ModuleType:
    """Return `huggingface_hub`; raise ImportError, with a way out, if it is not installed."""
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
    except ImportError as error:
        way = "pip install 'mae_jax[hub]'"
        raise ImportError(f"models on the Hub need huggingface_hub: {way}") from error
    return huggingface_hub


@contextlib.contextmanager
def one_sentence(address: Address, file: str = "") -> Iterator[None]:
    """Turn the errors of a request for a repository, or for its `file`, into a ValueError."""
    try:
        yield
    except Exception as error:  # those of the HTTP client, too, which another version may change
        raise ValueError(_sentence(error, address, file)) from error


def _sentence(error: Exception, address: Address, file: str) -> str:
    errors, constants = client().errors, client().constants
    repository, cause = address.repository, error.__cause__ or error
    reason = (f"{type(cause).__name__}: {cause}".splitlines() or [""])[0]
    if isinstance(error, errors.GatedRepoError):
        page = f"{constants.ENDPOINT}/{repository}"
        return f"{address} is gated: accept its terms at {page}, and log in with `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError):
        way = "check the name, or log in with `hf auth login` if it is private"
        return f"{constants.ENDPOINT} has no model {repository} for you: {way}"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repository} has no revision {address.revision!r}"
    response = getattr(error, "response", None)
    if response is not None and response.status_code in (401, 403):
        way = "log in with `hf auth login`, with a token that may do this"
        return f"{constants.ENDPOINT} refuses this for {repository}: {way} ({reason})"
    if not isinstance(error, errors.LocalEntryNotFoundError):
        return f"{address} cannot be transferred: {reason}"
    lacks = f"{file} of {address} is not in the cache {constants.HF_HUB_CACHE}"
    if isinstance(cause, errors.OfflineModeIsEnabled):
        return f"{lacks}, and HF_HUB_OFFLINE is set: load it once without that"
    return f"{lacks}, and {constants.ENDPOINT} cannot be reached: {reason}"


def _get(address: Address, file: str) -> Path | None:
    """Return a file of a repository in the cache, or None if the repository does not have it."""
    hub, place = client(), dict(revision=address.revision or None, filename=file)
    with one_sentence(address, file):
        known = hub.try_to_load_from_cache(address.repository, **place)
        is_absent = known is not None and not isinstance(
            known, str
        )  # the cache remembers that, too
        if is_absent and re.fullmatch("[0-9a-f]{40}", address.revision):
            return None
        try:
            return Path(hub.hf_hub_download(address.repository, **place))
        except hub.errors.LocalEntryNotFoundError:
            if not is_absent:
                raise
        except hub.errors.EntryNotFoundError:
            pass
    return None


def _verified(file: Path) -> str:
    """Return the SHA-256 of a file; ValueError if the cache has it under another digest."""
    digest, name = tensor_files.sha256_of(epath.Path(file)), file.resolve().name
    if len(name) == len(digest) and name != digest:
        raise ValueError(
            f"{file} is damaged, its SHA-256 is {digest}: remove it, and load it again"
        )
    return digest
