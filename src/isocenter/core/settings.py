"""All settings, declared once: flags, `ISOCENTER_*` variables, the aliases of other systems and `docs/settings.md` come from here.

The environment wins over `.env` in the working directory. Importing this module costs a moment (pydantic), so it is
imported where settings are needed and not by `import isocenter`.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MIB = 1024 * 1024


def _also(name: str, *others: str) -> AliasChoices:
    """A setting that is also read from variables with the names other systems gave it."""
    return AliasChoices(f"ISOCENTER_{name.upper()}", *others, name)


class Limits(BaseSettings):
    """What the guarded door lets in. Every refusal names the limit that it met."""

    model_config = SettingsConfigDict(env_prefix="ISOCENTER_", env_file=".env", extra="ignore", frozen=True)

    max_upload_bytes: int = Field(4096 * MIB, gt=0, description="Largest request body or input file, counted while it streams in.")
    max_voxels: int = Field(400_000_000, gt=0, description="Most voxels in one volume, checked against the header before anything is allocated.")
    max_archive_members: int = Field(8_000, gt=0, description="Most members in one ZIP archive, nested archives included.")
    max_archive_bytes: int = Field(8192 * MIB, gt=0, description="Most bytes that an archive may unpack to, in all.")
    max_archive_ratio: float = Field(200.0, gt=1, description="Largest unpacked : packed ratio of an archive that unpacks to more than 64 MiB.")
    max_archive_depth: int = Field(3, ge=1, description="How deep archives may lie inside archives.")
    max_header_bytes: int = Field(64 * MIB, gt=0, description="Largest DICOM header (everything before the pixels) of one file.")
    max_inflate_bytes: int = Field(
        1024 * MIB, gt=0, description="Most bytes that one deflated DICOM file may inflate to; it is also bounded by what its header declares."
    )
    max_nesting: int = Field(64, ge=1, description="How deep DICOM sequences may nest.")
    max_elements: int = Field(1_000_000, ge=1, description="Most data elements in one DICOM header, those in sequences included.")
    max_frames: int = Field(50_000, ge=1, description="Most DICOM images in one input, each frame of a multi-frame file counted.")
    max_prompts: int = Field(10_000, ge=1, description="Most prompts, and most points of one scribble or lasso, in a request.")
    decode_seconds: float = Field(60.0, gt=0, description="Time limit for decoding the compressed pixels of one image.")
    decode_memory_bytes: int = Field(2048 * MIB, gt=0, description="Memory limit of one decoder process.")


class Settings(Limits):
    """Everything that can be set."""

    home: Path = Field(Path("~/.isocenter"), description="Where state lies: artifacts, caches, weights.")
    host: str = Field(
        "127.0.0.1", description="Address to listen on. Another than this machine's own needs an API key, `--insecure`, or `ISOCENTER_CONTAINER=1`."
    )
    ports: Annotated[tuple[int, ...], NoDecode] = Field((8000,), description="Ports to listen on, all served by one process.")
    api_key: str | None = Field(
        None, validation_alias=_also("api_key", "API_KEY"), description="When set, clients must send it as `X-API-Key` or as a Bearer token."
    )
    open_faces: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Faces that need no key even when one is set, for old clients that cannot send one: `biomedparse`, `monai`, `text`."
    )
    insecure: bool = Field(False, description="Listen on any address without a key.")
    container: bool = Field(
        False, description="The process runs in a container whose published ports decide who gets in; allows 0.0.0.0 without a key, with a warning."
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field((), description="Browser origins let in beside localhost's.")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Host names accepted in the Host header beside localhost and plain addresses; `*` for any."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")
    log_format: Literal["plain", "json"] = Field("plain", description="Plain lines or one JSON object a line.")
    artifact_ttl: float = Field(7200, gt=0, validation_alias=_also("artifact_ttl", "BP_TMP_TTL"), description="Seconds that result files are kept.")
    artifact_sweep: float = Field(
        1800, gt=0, validation_alias=_also("artifact_sweep", "BP_TMP_SWEEP"), description="Seconds between two sweeps for old result files."
    )
    validate_heatmap: bool = Field(
        True,
        validation_alias=_also("validate_heatmap", "BP_VALIDATE_HEATMAP"),
        description="Read each heatmap file back and check it before its address is handed out.",
    )
    volume_cache_bytes: int = Field(2048 * MIB, ge=0, description="Memory for decoded volumes and what engines prepared from them.")
    session_cache_bytes: int = Field(1024 * MIB, ge=0, description="Memory for interactive sessions.")
    session_ttl: float = Field(
        3600, gt=0, validation_alias=_also("session_ttl", "MONAI_LABEL_SESSION_EXPIRY"), description="Seconds after which an untouched session ends."
    )
    workers: int = Field(1, ge=1, description="How many inferences run at once.")
    queue_size: int = Field(64, ge=1, description="How many may wait; the next one gets 503 with Retry-After.")
    decoders: int = Field(1, ge=0, description="Decoder processes kept ready for compressed pixels.")
    text_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Text models beside those in the home folder's `models`: `name=folder`, or `name=package` for one inside a Python package."
    )
    text_device: str | None = Field(
        None,
        pattern=r"^(cpu|cuda(:\d+)?)$",
        validation_alias=_also("text_device", "TORCH_DEVICE"),
        description="Where text models run: `cpu`, `cuda`, `cuda:1` (also for ROCm); found out by default.",
    )
    text_engine: Literal["auto", "onnxruntime", "openvino", "torch"] = Field(
        "auto", description="What runs text models: by default torch on a GPU, OpenVINO for bfloat16 on the processor, else ONNX Runtime."
    )
    text_precision: Literal["float32", "bfloat16", "float16", "int8"] = Field(
        "float32", description="Precision of text models. Less is faster and changes results; see `docs/text.md` for how much."
    )
    text_bertscore_model: str = Field(
        "microsoft/deberta-xlarge-mnli",
        validation_alias=_also("text_bertscore_model", "MODEL_BERTSCORE"),
        description="BERTScore's model where a request names none.",
    )
    text_embedding_model: str = Field(
        "all-MiniLM-L6-v2",
        validation_alias=_also("text_embedding_model", "MODEL_EMBED"),
        description="Embeddings' model where a request names none.",
    )
    text_slots: int = Field(2, ge=1, validation_alias=_also("text_slots", "GPU_MAX_CONCURRENT"), description="How many batches of texts run at once.")
    text_chunk: int = Field(
        32,
        ge=1,
        validation_alias=_also("text_chunk", "GPU_EMBED_BATCH"),
        description="Most texts in one batch, which is also the step of their progress.",
    )
    text_batch_tokens: int = Field(
        1024, ge=1, description="Most tokens in one batch of texts, padding included; a longer text is a batch of its own."
    )
    text_max_items: int = Field(
        100, ge=1, validation_alias=_also("text_max_items", "GPU_MAX_BATCH_SIZE"), description="Most texts in one list of a request."
    )
    text_max_length: int = Field(
        10_000, ge=1, validation_alias=_also("text_max_length", "GPU_MAX_TEXT_LENGTH"), description="Most characters in one text."
    )
    text_wait: float = Field(1.0, ge=0, description="Seconds that a request for texts may wait for its first batch before it gets 503.")

    @field_validator("ports", "open_faces", "cors_origins", "allowed_hosts", "text_models", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        """Lists are written with commas in the environment; a single number is a list of one."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return (value,) if isinstance(value, int) else value

    @field_validator("home")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
