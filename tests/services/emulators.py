"""A new bucket of an emulated store behind a proxy, and the environment variables with which users reach it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from services.fault_proxy import FaultProxy

from pipelines.storage.files import filesystem
from pipelines.storage.stores import gcs

CANARY = "canary0secret0of0nobody"


@dataclass
class Store:
    """A new bucket."""

    scheme: str
    bucket: str
    proxy: FaultProxy

    @property
    def url(self) -> str:
        return f"{self.scheme}://{self.bucket}"

    @property
    def is_s3(self) -> bool:
        return self.scheme == "s3"

    @property
    def fs(self) -> Any:
        """The driver's own file system, to look at what is there."""
        return filesystem(self.url)[0]

    def contents(self, below: str = "") -> dict[str, bytes]:
        """All objects by their names below a prefix."""
        root = f"{self.bucket}/{below}".rstrip("/")
        return {name.removeprefix(root + "/"): self.fs.cat_file(name) for name in self.fs.find(root)}

    def put(self, name: str, data: bytes) -> None:
        """As some other program would, by other means than ours."""
        self.fs.pipe_file(f"{self.bucket}/{name}", data)

    def unfinished_uploads(self) -> list[Any]:
        return self.fs.call_s3("list_multipart_uploads", Bucket=self.bucket).get("Uploads") or []


def environment(scheme: str, proxy: FaultProxy) -> dict[str, str]:
    """What a user sets to reach such a store."""
    if scheme == "gs":
        return {"STORAGE_EMULATOR_HOST": proxy.url, "FSSPEC_GS_TOKEN": "anon"}
    return {
        "AWS_ENDPOINT_URL": proxy.url,
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": CANARY,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def forget_clients() -> None:
    """fsspec keeps file systems by their arguments, and the address is none."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    gcs.driver().clear_instance_cache()
