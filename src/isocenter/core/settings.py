"""All settings, declared once: flags, `ISOCENTER_*` variables, the aliases of other systems and `docs/settings.md` come from here.

The environment wins over `.env` in the working directory. Importing this module costs a moment (pydantic), so it is
imported where settings are needed and not by `import isocenter`.
"""

from __future__ import annotations

import json
import re
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

#: How a text model is named: never like a path.
TEXT_MODEL = r"(?!.*\.\.)[A-Za-z0-9][A-Za-z0-9_.-]{0,99}(/[A-Za-z0-9][A-Za-z0-9_.-]{0,99})?"
MIB = 1024 * 1024
DAY = 86400.0


def _also(name: str, *others: str) -> AliasChoices:
    """A setting that is also read from variables with the names other systems gave it."""
    return AliasChoices(f"ISOCENTER_{name.upper()}", *others, name)


class Limits(BaseSettings):
    """What the guarded door lets in. Every refusal names the limit that it met."""

    # An empty variable is one that is not set: composed files and scripts write `NAME=${NAME:-}`.
    model_config = SettingsConfigDict(env_prefix="ISOCENTER_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True)

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
    idle_exit: float | None = Field(
        None, gt=0, description="End the server after so long without a request or a job: seconds, or `90s`, `30m`, `4h`. Never by default."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="What is logged.")
    log_format: Literal["plain", "json"] = Field("plain", description="Plain lines or one JSON object a line.")
    artifact_ttl: float = Field(7200, gt=0, validation_alias=_also("artifact_ttl", "BP_TMP_TTL"), description="Seconds that result files are kept.")
    artifact_bytes: int = Field(8192 * MIB, ge=0, description="Most bytes of result files under `/files`; the oldest go first. 0: any number.")
    artifact_sweep: float = Field(
        1800,
        gt=0,
        validation_alias=_also("artifact_sweep", "BP_TMP_SWEEP"),
        description="Seconds between two sweeps for what is too old.",
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
    inference_timeout: float = Field(
        3600.0,
        gt=0,
        validation_alias=_also("inference_timeout", "INFERENCE_TIMEOUT"),
        description="Seconds that one answer may take; then its request gets 504, and a model in a child process is ended.",
    )
    lease_timeout: float = Field(600.0, gt=0, description="Seconds that a request may wait for a model or for memory; then it gets 503.")
    profile: Literal["auto", "kaggle_t4", "colab_t4", "colab_a100", "local_16gb", "local_24gb", "cpu_only"] = Field(
        "auto", description="What kind of machine this is; found out by default. `docs/runtime.md` says what each stands for."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "nf4"] = Field(
        "auto", description="Precision of the models that offer it; by default the best that fits the device."
    )
    device: str = Field(
        "auto",
        pattern=r"^(auto|cpu|mps|(cuda|rocm)(:\d+)?)$",
        description="Where models run: `cpu`, `cuda` (also for ROCm), `cuda:1`, `mps`. A model that does not fit there runs on the processor.",
    )
    model_places: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Devices of single families of models, over the profile's: `nnunet=cpu,sam=cuda:1`."
    )
    memory_budget_bytes: int | None = Field(
        None, gt=0, description="Memory that models may take on each GPU (without one, of the computer). Default: what is free, less the headroom."
    )
    memory_headroom_bytes: int | None = Field(
        None, ge=0, description="Memory that models leave alone. Default: a twentieth of a GPU, a tenth of the computer, within reason."
    )
    slice_batch_size: int | None = Field(
        None,
        ge=1,
        le=256,
        validation_alias=_also("slice_batch_size", "BP_SLICE_BATCH_SIZE", "BP_SLICE_BATCH"),
        description="Slices that are computed at once, where a request does not say. Default: by the GPU's free memory, 1 to 8.",
    )
    onnx_engine: Literal["auto", "onnxruntime", "openvino"] = Field(
        "auto", description="What runs ONNX files on the processor: by default OpenVINO where it is installed."
    )
    onnx_providers: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        validation_alias=_also("onnx_providers", "ONNX_PROVIDERS"),
        description="ONNX Runtime's execution providers to ask for, in order, as a JSON list or with commas; those that are not there are left out.",
    )
    gpu_memory_limit: int | None = Field(
        None,
        gt=0,
        validation_alias=_also("gpu_memory_limit", "GPU_MEMORY_LIMIT"),
        description="Most bytes that ONNX Runtime's memory arena may hold on a GPU. Default: the memory budget.",
    )
    decoders: int = Field(1, ge=0, description="Decoder processes kept ready for compressed pixels.")
    models_path: Path | None = Field(
        None,
        validation_alias=_also("models_path", "MODELS_PATH"),
        description="Folder of further models, one folder each, beside those in the home folder's `models`: an ONNX network with its "
        "`config.json`, an nnU-Net folder, a transformers folder.",
    )
    default_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Which model answers where a request names none: `task=model`, e.g. `interactive=geodesic,text=tissue`."
    )
    biomedparse_checkpoint: Path | None = Field(
        None,
        validation_alias=_also("biomedparse_checkpoint", "BP3D_CKPT"),
        description="BiomedParse's weights; set alone, it chooses BiomedParse for words.",
    )
    biomedparse_code: Path | None = Field(
        None,
        validation_alias=_also("biomedparse_code", "BP3D_CODE"),
        description="The folder of BiomedParse's repository (branch v2). Default: looked for around its weights.",
    )
    biomedparse_timeout: float = Field(
        600.0,
        gt=0,
        validation_alias=_also("biomedparse_timeout", "BP3D_TIMEOUT"),
        description="Seconds of silence after which BiomedParse's process is killed.",
    )
    pull: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Models of the catalog that are fetched before the port opens, where they are not installed yet."
    )
    accept_license: bool = Field(False, description="Agree to licences that forbid commercial use, for the models that `pull` names.")
    database_url: str | None = Field(
        None,
        validation_alias=_also("database_url", "DATABASE_URL"),
        description="Where records lie: `postgresql://user:password@host/name` or `sqlite:///path`. Default: `isocenter.db` in the home folder.",
    )
    database_wait: float = Field(
        60.0,
        ge=0,
        description="Seconds for which a server or worker that starts waits for a database that does not answer; then it ends with an error.",
    )
    postgres_server: str | None = Field(
        None, validation_alias=_also("postgres_server", "POSTGRES_SERVER"), description="PostgreSQL's host, where `DATABASE_URL` is not set."
    )
    postgres_port: int = Field(5432, validation_alias=_also("postgres_port", "POSTGRES_PORT"), description="PostgreSQL's port.")
    postgres_user: str = Field("postgres", validation_alias=_also("postgres_user", "POSTGRES_USER"), description="PostgreSQL's user.")
    postgres_password: str = Field("", validation_alias=_also("postgres_password", "POSTGRES_PASSWORD"), description="PostgreSQL's password.")
    postgres_db: str = Field("isocenter", validation_alias=_also("postgres_db", "POSTGRES_DB"), description="PostgreSQL's database.")
    vector_index: Literal["exact", "ruvector"] = Field(
        "exact",
        description="How vectors are searched where the database cannot do it: exactly, or through an approximate index of the package `ruvector`.",
    )
    vector_memory_bytes: int = Field(
        512 * MIB,
        ge=0,
        description="Memory for collections of vectors that are searched exactly in process; larger ones are read from the database each time.",
    )
    redis_url: str | None = Field(
        None,
        validation_alias=_also("redis_url", "REDIS_URL", "CELERY_BROKER_URL"),
        description="Celery's broker, such as `redis://host:6379/0`. Without it, workers look into the database themselves.",
    )
    minio_endpoint: str | None = Field(
        None,
        validation_alias=_also("minio_endpoint", "MINIO_ENDPOINT"),
        description="An S3 server for uploads and results, `host:port` or a URL. Default: files in the home folder.",
    )
    minio_access_key: str = Field("", validation_alias=_also("minio_access_key", "MINIO_ACCESS_KEY"), description="Its access key.")
    minio_secret_key: str = Field("", validation_alias=_also("minio_secret_key", "MINIO_SECRET_KEY"), description="Its secret key.")
    minio_secure: bool = Field(False, validation_alias=_also("minio_secure", "MINIO_SECURE"), description="Speak HTTPS to it.")
    minio_bucket_name: str = Field("user-files", validation_alias=_also("minio_bucket_name", "MINIO_BUCKET_NAME"), description="Its bucket.")
    minio_region: str = Field("us-east-1", validation_alias=_also("minio_region", "MINIO_REGION"), description="Its region, part of each signature.")
    minio_public_endpoint: str | None = Field(
        None,
        validation_alias=_also("minio_public_endpoint", "MINIO_PUBLIC_ENDPOINT"),
        description="The S3 server's address as clients see it. When set, downloads are redirected there, signed for an hour.",
    )
    job_workers: int | None = Field(
        None,
        ge=0,
        description="Jobs at once: of a server that works on them itself (1; 0 for none; none with a broker), of a worker (2; on a GPU 1).",
    )
    machine_share: int = Field(
        1,
        ge=1,
        description="Processes like this one that share the machine: each takes its part of the cores and of the memory. `isocenter worker` sets it "
        "for the processes that it starts.",
    )
    worker_beats: Path | None = Field(
        None,
        description="A folder in which each worker process touches a file of its own whenever it has told the job table that it is there, every few "
        "seconds: what a container's health check looks at.",
    )
    job_lease: float = Field(60.0, ge=0.2, description="Seconds after its worker's last sign of life that a job is given to another.")
    job_attempts: int = Field(3, ge=1, description="How often a job is tried whose worker dies or runs out of memory.")
    job_timeout: float = Field(
        3600.0, gt=0, validation_alias=_also("job_timeout", "INFERENCE_TIMEOUT"), description="Seconds that one attempt at a job may take."
    )
    job_same_within: float = Field(60.0, ge=0, description="Seconds within which an equal submission is the same job: a client that tries again.")
    job_gpu_reserve: int = Field(1, ge=0, description="Waiting jobs that are left to each GPU worker that is there; processors take the rest.")
    job_drain: float = Field(
        25.0, ge=0, description="Seconds that a running job may still take when the server is told to stop; it then starts anew."
    )
    job_keep: float = Field(
        30 * DAY,
        ge=0,
        description="How long jobs that have ended stay, with their results: seconds, or `12h`, `30d`. 0 (here and below): for ever. "
        "Jobs that somebody marked as kept stay in any case.",
    )
    job_keep_bytes: int = Field(0, ge=0, description="Most bytes of all results together; the jobs that ended longest ago go first. 0: any number.")
    upload_keep: float = Field(
        30 * DAY,
        ge=0,
        description="How long uploaded scans and studies stay after they were last used by a job. What a waiting, running or kept job needs stays.",
    )
    upload_keep_bytes: int = Field(
        0, ge=0, description="Most bytes of all uploaded scans and studies; those unused for longest go first. 0: any number."
    )
    audit_keep: float = Field(365 * DAY, ge=0, description="How long the audit trail of jobs stays that are gone.")
    cache_keep: float = Field(90 * DAY, ge=0, description="How long compiled kernels stay in the home folder's `kernels`; they are compiled again.")
    dicom_ae_title: str = Field("ISOCENTER", min_length=1, max_length=16, description="AE title of `isocenter listen`.")
    dicom_host: str = Field(
        "127.0.0.1", description="Address that `isocenter listen` listens on; another than this machine's own needs `dicom_allowed`."
    )
    dicom_port: int = Field(11112, ge=0, le=65535, description="Its port.")
    dicom_allowed: Annotated[tuple[str, ...], NoDecode] = Field((), description="AE titles that may send to it; any where none is named.")
    dicom_rules: Path | None = Field(None, description="Its rules, a TOML file. Default: `listen.toml` in the home folder.")
    dicom_settle: float = Field(10.0, ge=0, description="Seconds after its last image that a series counts as complete.")
    dicom_max_bytes: int = Field(1024 * MIB, gt=0, description="Largest image that is taken in; an association that sends more is ended.")
    dicom_tls_cert: Path | None = Field(
        None, description="Its certificate, PEM, with those between it and its authority; it then speaks TLS only. Shown to destinations too."
    )
    dicom_tls_key: Path | None = Field(None, description="The certificate's key, PEM, without a password. Default: in the certificate's file.")
    dicom_tls_ca: Path | None = Field(
        None, description="Authorities that sign the certificates of other DICOM nodes, PEM. Default: the system's, for destinations."
    )
    dicom_tls_client_cert: bool = Field(False, description="Callers must show a certificate that `dicom_tls_ca` signed.")
    webhook_url: str | None = Field(None, description="Where the end of every job is told, by a signed POST.")
    webhook_secret: str = Field("", description="The key of the webhook's signature (HMAC-SHA256).")
    min_free_bytes: int = Field(256 * MIB, ge=0, description="Free space under which the server calls itself not ready.")
    text_models: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Text models beside those in the home folder's `models`: `name=folder`, or `name=package` for one inside a Python package."
    )
    text_device: str | None = Field(
        None,
        validation_alias=_also("text_device", "TORCH_DEVICE"),
        description="Where text models run: `cpu`, `cuda`, `cuda:1` (also for ROCm); `auto`, the default, finds out.",
    )
    text_engine: Literal["auto", "onnxruntime", "openvino", "torch"] = Field(
        "auto",
        description="What runs text models: torch on a GPU; else OpenVINO for bfloat16 and, if installed, for int8; else ONNX Runtime.",
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

    @field_validator(
        "ports",
        "open_faces",
        "cors_origins",
        "allowed_hosts",
        "dicom_allowed",
        "text_models",
        "default_models",
        "pull",
        "model_places",
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        """Lists are written with commas in the environment; a single number is a list of one."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return (value,) if isinstance(value, int) else value

    @field_validator("onnx_providers", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """A JSON list, as the documents write it, or names with commas."""
        if isinstance(value, str):
            parts = json.loads(value) if value.lstrip().startswith("[") else value.split(",")
            return tuple(str(part).strip() for part in parts if str(part).strip())
        return value

    @property
    def effective_onnx_providers(self) -> list[str]:
        """ONNX Runtime's providers in use: those asked for that are there, in their order, the processor's when there is none.

        Asking is logged once, in the three lines that operators look for.
        """
        # By its name, when somebody asks: this layer knows no library for inference, and importing settings loads none.
        found: list[str] = import_module("isocenter.runtime.providers").announce(self.onnx_providers)
        return found

    @field_validator("text_device")
    @classmethod
    def _known_device(cls, value: str | None) -> str | None:
        name = (value or "auto").strip().lower()
        if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", name):
            raise ValueError("a device is cpu, cuda, one card such as cuda:1, or auto")
        return None if name == "auto" else name

    @field_validator("text_bertscore_model", "text_embedding_model")
    @classmethod
    def _model_name(cls, value: str) -> str:
        if not re.fullmatch(TEXT_MODEL, value):
            raise ValueError("a model is named like all-MiniLM-L6-v2 or publisher/name; ISOCENTER_TEXT_MODELS=name=folder names a folder elsewhere")
        return value

    @field_validator("idle_exit", "job_keep", "upload_keep", "audit_keep", "cache_keep", mode="before")
    @classmethod
    def _duration(cls, value: object) -> object:
        """`30d`, `4h`, `30m` and `90s` in seconds."""
        units = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": DAY}
        if isinstance(value, str) and value[-1:] in units:
            return float(value[:-1]) * units[value[-1]]
        return value

    @field_validator("home")
    @classmethod
    def _expand(cls, value: Path) -> Path:
        return value.expanduser()


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The settings of this process, read once."""
    return Settings()
