"""Settings: the only reader of the environment.

Each field is an environment variable in capitals (also read from a file ``.env`` in the working
folder). ``docs/settings.md`` and ``embedding-studio settings`` are made from this class.
"""

import hashlib
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BaseModel,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_serializer,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from embedding_studio.domain.index import MAX_DIMENSIONS
from embedding_studio.domain.sessions import DEFAULT_EVENT_WEIGHTS
from embedding_studio.embedders import PART_CHARACTERS, EmbedderOptions
from embedding_studio.embedders.names import without_secrets
from embedding_studio.embeddings.improvement.waves import ADJUSTMENT_RATE, NUM_ITERATIONS, SOFTMIN_TEMPERATURE
from embedding_studio.errors import InvalidSettingError, counted, shown
from embedding_studio.feedback.improve import (
    BACKOFF_SECONDS,
    LEASE_SECONDS,
    MAX_ATTEMPTS,
    MAX_SESSIONS_PER_USER,
)
from embedding_studio.feedback.selection import MAX_CLICKS, MIN_SESSION_SECONDS
from embedding_studio.feedback.worker import INTERVAL_SECONDS, USERS_PER_BATCH
from embedding_studio.indexing import THREADS
from embedding_studio.search import (
    EXPLORATION_RATIO,
    GATE_THRESHOLD,
    QUERY_SECONDS,
    QUERY_SHIFT,
    SHARED_MIN_USERS,
)
from embedding_studio.settings_file import warn_of_near_misses
from embedding_studio.storage.ports import (
    LOCK_SECONDS,
    POOL_SIZE,
    RECALL_TARGET,
    STATEMENT_SECONDS,
    WAITING_EVENTS,
    WAITING_EVENTS_OF_SESSION,
)
from embedding_studio.telemetry.logs import LogFormat

logger = logging.getLogger(__name__)

ORIGIN = re.compile(r"""\*|null|[a-z][a-z0-9+.-]*://[^/?#\s"'A-Z]+""")
"""As browsers send it; one that is written otherwise would allow none."""


class Knob(BaseModel):
    """A setting with named presets and a documented range; outside it a value is used with a warning."""

    presets: dict[str, float]
    low: float
    high: float


KNOBS: dict[str, Knob] = {
    "adjustment_rate": Knob(
        presets={"conservative": 0.03, "balanced": 0.1, "aggressive": 0.3}, low=0.01, high=0.5
    ),
    "num_iterations": Knob(presets={"quick": 5, "standard": 15, "deep": 30}, low=5, high=50),
    "softmin_temperature": Knob(presets={"sharp": 0.3, "balanced": 1.0, "smooth": 3.0}, low=0.1, high=5.0),
    "improvement_seconds_interval": Knob(
        presets={"realtime": 300, "balanced": 1800, "batch": 7200}, low=300, high=86400
    ),
}
"""The four knobs of the reference page, with its ranges."""


FEWEST_KEY_CHARACTERS = 16
ADVISED_KEY_CHARACTERS = 32
FEWEST_SECRET_CHARACTERS = 32
"""As RFC 7518 has it: as many bytes as the hash."""

MOST_PROCESSES = 64

LATE_SECONDS = 60
"""A click is learnt from within a second where a worker runs and clicks wake it."""

NEUTRAL = frozenset(
    {
        *(
            "database_url",
            "database_read_url",
            "data_dir",
            "attached_stores",
            "pool_size",
            "host",
            "port",
            "serve_processes",
            "worker_metrics_port",
        ),
        *("embedder_api_key", "embedder_query_seconds", "embedder_batch_size"),
        "embedder_threads",
        *("admin_api_key", "write_api_key", "write_api_key_requires_user_token", "cors_origins"),
        *("user_token_secret", "user_token_jwks", "user_token_claim"),
        "console",
        *("user_token_audience", "user_token_issuer"),
        *("key_requests_per_second", "user_requests_per_second"),
        *("max_request_bytes", "max_events_per_request", "waiting_events", "index_threads"),
        "log_format",
        *("statement_seconds", "lock_seconds", "request_seconds", "max_connections", "root_path"),
        *("improve_on_click", "improvement_seconds_interval", "users_per_batch"),
        *("lease_seconds", "max_attempts", "backoff_seconds", "retention_days"),
    }
)
"""The settings on which it does not depend what a session teaches and how results are ranked."""


class Settings(BaseSettings):
    model_config = SettingsConfigDict(env_file=".env", extra="ignore", frozen=True, hide_input_in_errors=True)

    adjuster: Literal["passive_aggressive", "torch"] = Field(
        default="passive_aggressive",
        description="What moves vectors: `passive_aggressive` measured best, `torch` is the gradient"
        " adjuster.",
    )
    adjustment_rate: float = Field(
        default=ADJUSTMENT_RATE,
        gt=0,
        description="How far one session moves vectors. passive_aggressive: the margin is half of it;"
        " torch: the learning rate.",
    )
    num_iterations: int = Field(
        default=NUM_ITERATIONS,
        ge=1,
        description="How thoroughly. passive_aggressive: one sweep over a user's sessions for every ten;"
        " torch: gradient steps for each session.",
    )
    softmin_temperature: float = Field(
        default=SOFTMIN_TEMPERATURE,
        gt=0,
        description="Objects with several parts: lower concentrates on the most similar part, higher"
        " spreads.",
    )
    max_angle_degrees: float | None = Field(
        default=None,
        gt=0,
        le=90,
        description="Trust region: the largest angle between a personal vector and its original."
        " Absent: 20 for passive_aggressive, 5 for torch, as each measured best.",
    )
    gate_threshold: float = Field(
        default=GATE_THRESHOLD,
        ge=0,
        lt=1,
        description="Cosine above which a remembered query bears on a new one, in collections that have no"
        " threshold of their own (embedding-studio tune).",
    )
    learn_own_past: bool = Field(
        default=True,
        description="Once a day a worker fits to the log how much a user's own past counts in each"
        " collection (embedding-studio tune does so at once). Whoever can make up many users can lower it for"
        " all; false where accounts are cheap.",
    )
    query_shift: float = Field(
        default=QUERY_SHIFT,
        ge=0,
        description="How far a query moves towards what was clicked for near queries; 0 turns it off.",
    )
    shared_min_users: int = Field(
        default=SHARED_MIN_USERS,
        ge=0,
        description="From so many other users on, what they clicked for near queries shifts everybody's"
        " query and raises what they clicked; 0: what one user clicked bears on no other user, but for the"
        " shares that LEARN_OWN_PAST counts.",
    )
    event_weights: dict[str, float] = Field(
        default=dict(DEFAULT_EVENT_WEIGHTS),
        description="How much each type of event says for its object (JSON); others say nothing.",
    )
    max_sessions_per_user: int = Field(
        default=MAX_SESSIONS_PER_USER, ge=1, description="Only so many of a user's latest sessions count."
    )
    min_session_seconds: int = Field(
        default=MIN_SESSION_SECONDS,
        ge=0,
        description="Shorter sessions are refused; the reference page uses 10.",
    )
    max_session_clicks: int = Field(
        default=MAX_CLICKS, ge=1, description="Sessions with more clicks are refused as ambiguous."
    )
    quarantine: bool = Field(
        default=True,
        description="Nothing is learnt from users whose sessions are a robot's (embedding-studio quarantine);"
        " false where a till or a kiosk is one user. Who was quarantined by hand stays so.",
    )
    improve_on_click: bool = Field(
        default=True, description="A click places an order and wakes the worker at once."
    )
    improvement_seconds_interval: int = Field(
        default=INTERVAL_SECONDS,
        ge=1,
        description="Seconds between a worker's looks for orders where a click does not wake it.",
    )
    exploration_ratio: float = Field(
        default=EXPLORATION_RATIO,
        ge=0,
        le=1,
        description="Share of slots that show the plain search's next result instead of the personalised"
        " one's.",
    )
    recall_target: float = Field(
        default=RECALL_TARGET,
        gt=0.5,
        le=1,
        description="Share of the true nearest results that a search is to find, in collections for which"
        " this was not measured (embedding-studio recall); 1 compares all, always.",
    )
    users_per_batch: int = Field(
        default=USERS_PER_BATCH, ge=1, description="Users that a worker claims at once."
    )
    lease_seconds: float = Field(
        default=LEASE_SECONDS,
        gt=0,
        description="So long after a worker ended whom it held is learnt by another.",
    )
    max_attempts: int = Field(
        default=MAX_ATTEMPTS, ge=1, description="Attempts after which an order has failed."
    )
    backoff_seconds: float = Field(
        default=BACKOFF_SECONDS, ge=0, description="Wait before the second attempt; doubles each time."
    )
    retention_days: int | None = Field(
        default=None,
        ge=1,
        description="Once a day a worker removes sessions that are older, with their events, and what was"
        " learnt from them; absent: never (embedding-studio prune does so at once).",
    )
    database_url: SecretStr | None = Field(
        default=None,
        description="A PostgreSQL >= 15 with pgvector >= 0.8; absent: the embedded server in DATA_DIR.",
    )
    database_read_url: SecretStr | None = Field(
        default=None,
        description="A streaming replica of DATABASE_URL on which searches are run while it is there and not"
        " behind; a user's own clicks are seen all the same. Absent: all is run on DATABASE_URL.",
    )
    data_dir: Path = Field(
        default=Path(".embedding-studio"), description="Where the embedded server keeps its data."
    )
    pool_size: int = Field(
        default=POOL_SIZE, ge=1, le=100, description="Database connections of one process."
    )
    statement_seconds: float = Field(
        default=STATEMENT_SECONDS,
        ge=0,
        le=86_400,
        description="The database gives up on a statement that takes longer, but for upkeep; 0: never.",
    )
    lock_seconds: float = Field(
        default=LOCK_SECONDS,
        ge=0,
        le=86_400,
        description="The database gives up on a statement that waits for a lock longer; 0: never.",
    )
    attached_stores: dict[str, SecretStr] = Field(
        default={},
        description="What collections can be attached to beside the own database, or found by (JSON: name and"
        " address): other databases, servers of Qdrant (`https://:KEY@host:6333`) and of Milvus"
        " (`milvus+https://USER:PASSWORD@host:19530`), and folders of LanceDB (`lancedb:///folder`,"
        " `lancedb+s3://bucket/folder`).",
    )
    embedder: str = Field(
        default="all-MiniLM-L6-v2",
        description="`all-MiniLM-L6-v2`, another name or folder of sentence-transformers (the extra `text`),"
        " `openai:MODEL@BASE_URL`, or `none`: callers bring vectors.",
    )
    embedder_api_key: SecretStr | None = Field(
        default=None, description="Sent to an OpenAI-compatible endpoint."
    )
    embedder_query_prompt: str | None = Field(
        default=None,
        description="Stands before each query, as in `query: ` for E5; empty: nothing does. Absent: what a"
        " sentence-transformers model says itself.",
    )
    embedder_document_prompt: str | None = Field(
        default=None,
        description="Stands before each part of a text, as in `passage: ` for E5; empty: nothing does."
        " Absent: what a sentence-transformers model says itself. It is recorded with a collection: another"
        " prompt needs another collection.",
    )
    embedder_dimensions: int | None = Field(
        default=None,
        ge=1,
        le=MAX_DIMENSIONS,
        description="Asked for of a model that can give fewer than it has; absent: all.",
    )
    embedder_query_seconds: float = Field(
        default=QUERY_SECONDS,
        gt=0,
        description="So long a search waits for an `openai:` endpoint, then it is answered 503; after"
        " three in succession all searches by text are, at once, but for one every few seconds, which tries."
        " A model that is loaded when it is first asked may need more.",
    )
    embedder_batch_size: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Texts that an `openai:` endpoint is sent at once (absent: 64; one that refuses so many"
        " is sent fewer), or that a local model embeds at once (absent: as many as was measured best).",
    )
    embedder_threads: int | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Cores that a local model may use at once for a batch of texts; absent: all. With the"
        " default model a query takes one for some 10 ms, whatever this says.",
    )
    embedder_part_characters: int = Field(
        default=PART_CHARACTERS,
        ge=1,
        description="Longer texts are split for an `openai:` endpoint, which does not tell how much it reads;"
        " one that refuses such parts is sent shorter ones. A local model tells its limit.",
    )
    index_threads: int = Field(
        default=THREADS,
        ge=1,
        le=64,
        description="Batches of texts that are embedded at once while indexing: 4 keeps an `openai:` endpoint"
        " busy; a local model uses all cores by itself.",
    )
    plugins_path: Path | None = Field(
        default=None, description="A Python file, or a folder of them, with one plugin class."
    )
    log_format: LogFormat = Field(
        default="text",
        description="Of the lines on stderr; `json`: an object a line, for programs. In neither are texts,"
        " keys, or ids of users.",
    )
    host: str = Field(default="127.0.0.1", description="Where the service listens.")
    port: int = Field(default=8000, ge=0, le=65535, description="0 takes a free one.")
    serve_processes: int = Field(
        default=1,
        ge=1,
        le=MOST_PROCESSES,
        description="Processes of `embedding-studio serve` that answer requests, on one port; of several, one"
        " that ends is restarted while the others answer, and the worker is one of its own. Each has"
        " POOL_SIZE connections, MAX_CONNECTIONS, and its own copy of what a search needs in memory.",
    )
    worker_metrics_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description="Where `embedding-studio worker` tells its numbers to Prometheus, on HOST; 0 takes a free"
        " port; absent: nowhere. A worker inside the service tells them at the service's `/metrics`.",
    )
    admin_api_key: SecretStr | None = Field(
        default=None,
        description="Bearer key that may do everything, of 16 characters or more. It makes others:"
        " `embedding-studio keys`.",
    )
    write_api_key: SecretStr | None = Field(
        default=None,
        description="Bearer key that may search and send sessions and events, of 16 characters or more.",
    )
    write_api_key_requires_user_token: bool = Field(
        default=False,
        description="WRITE_API_KEY speaks for a user only with the user's token: for a key in browsers.",
    )
    user_token_secret: SecretStr | None = Field(
        default=None,
        description="Tokens of users are signed by HS256 with this secret of 32 characters or more.",
    )
    user_token_jwks: str | None = Field(
        default=None,
        description="Tokens of users are signed by RS256; this JWKS, a file or a URL, has the public keys.",
    )
    user_token_claim: str = Field(
        default="sub", min_length=1, description="Which claim of a token is the user's id."
    )
    user_token_audience: str | None = Field(
        default=None, description="What `aud` of a token has to be, or hold; absent: anything."
    )
    user_token_issuer: str | None = Field(
        default=None, description="What `iss` of a token has to be; absent: anything."
    )
    key_requests_per_second: float = Field(
        default=0,
        ge=0,
        description="Requests of one key to one service, in however many processes, on average over ten"
        " seconds; more are answered 429. 0: any number.",
    )
    user_requests_per_second: float = Field(
        default=0,
        ge=0,
        description="Requests with the tokens of one user to one service, likewise. 0: any number.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="Origins whose pages may call the service, separated by commas."
    )
    console: bool = Field(
        default=True,
        description="Serve `/console`: pages over the routes that hold no data and no key of their own.",
    )
    root_path: str = Field(
        default="",
        pattern=r"^(/[^/?#]+)*$",
        description="Path prefix that a proxy in front strips, such as `/search`; `/docs` links to below it.",
    )
    max_connections: int = Field(
        default=1_000,
        ge=10,
        description="Connections that the service keeps open, half of the open files that it may have at the"
        " most; beyond, the one is closed that has waited longest for its client.",
    )
    request_seconds: float = Field(
        default=20,
        gt=0,
        le=3_600,
        description="A request must have arrived whole after so many seconds, or its connection is closed.",
    )
    max_request_bytes: int = Field(default=2_000_000, ge=1_000, description="Larger requests are refused.")
    max_events_per_request: int = Field(default=1_000, ge=1, description="More events at once are refused.")
    waiting_events: int = Field(
        default=WAITING_EVENTS,
        ge=0,
        description="So many events are kept, for a day, whose session is not recorded yet; 0: none. For one"
        f" session {WAITING_EVENTS_OF_SESSION} at the most, and of one key no more than leave as many free.",
    )

    def fingerprint(self) -> str:
        """Return what is equal for settings under which the same sessions teach and rank the same."""
        told = self.model_dump(mode="json", exclude=set(NEUTRAL))
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    @field_validator("cors_origins", mode="before")
    @classmethod
    def _split_at_commas(cls, given: Any) -> Any:
        return (
            tuple(part.strip() for part in given.split(",") if part.strip())
            if isinstance(given, str)
            else given
        )

    @field_validator("cors_origins")
    @classmethod
    def _are_origins(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        for each in given:
            if not ORIGIN.fullmatch(each):
                raise ValueError(
                    f"{shown(each)} is no origin as browsers send it; write https://shop.example, in small "
                    "letters and without a path, or *, with commas between several"
                )
        return given

    @field_validator("data_dir", "embedder", "host", mode="before")
    @classmethod
    def _empty_is_default(cls, given: Any, info: ValidationInfo) -> Any:
        return cls.model_fields[info.field_name or ""].default if given == "" else given

    @field_validator(
        "database_url",
        "embedder_api_key",
        "embedder_dimensions",
        "embedder_batch_size",
        "plugins_path",
        "retention_days",
        "worker_metrics_port",
        "admin_api_key",
        "write_api_key",
        "user_token_secret",
        "user_token_jwks",
        "user_token_audience",
        "user_token_issuer",
        mode="before",
    )
    @classmethod
    def _empty_is_absent(cls, given: Any) -> Any:
        return None if given == "" else given

    @field_validator(*KNOBS, mode="before")
    @classmethod
    def _resolve_preset(cls, given: Any, info: Any) -> Any:
        knob = KNOBS[info.field_name]
        if not isinstance(given, str):
            return given
        if given.lower() in knob.presets:
            return knob.presets[given.lower()]
        try:
            return float(given)
        except ValueError:
            raise ValueError(f"give a number or one of {', '.join(knob.presets)}") from None

    @field_validator("event_weights")
    @classmethod
    def _weights_are_sound(cls, given: dict[str, float]) -> dict[str, float]:
        if any(not 0 <= weight < float("inf") for weight in given.values()):
            raise ValueError("weights are numbers from 0 upwards")
        if not any(given.values()):
            raise ValueError("at least one type of event needs a weight above 0, or nothing is ever learnt")
        return given

    @field_validator("shared_min_users")
    @classmethod
    def _one_is_too_few(cls, given: int) -> int:
        if given == 1:
            raise ValueError(
                "1 would show what a single user clicked to others; give 2 or more, or 0 for off"
            )
        return given

    @field_validator("admin_api_key", "write_api_key", "user_token_secret")
    @classmethod
    def _is_long_enough(cls, given: SecretStr | None, info: Any) -> SecretStr | None:
        if given is None:
            return None
        length = len(given.get_secret_value())
        fewest = FEWEST_SECRET_CHARACTERS if info.field_name == "user_token_secret" else FEWEST_KEY_CHARACTERS
        if length < fewest:
            raise ValueError(
                f"has {counted(length, 'character')}, which can be guessed; give at least {fewest}, such as "
                "what `openssl rand -base64 32` prints"
            )
        if length < ADVISED_KEY_CHARACTERS:
            logger.warning(
                "%s has %s characters; give %s or more",
                info.field_name.upper(),
                length,
                ADVISED_KEY_CHARACTERS,
            )
        return given

    @field_validator("user_token_jwks")
    @classmethod
    def _keys_come_safely(cls, given: str | None) -> str | None:
        host = urlsplit(given).hostname if given and given.startswith("http://") else None
        if host is not None and host not in {"localhost", "127.0.0.1", "::1"}:
            raise ValueError("whoever is on the way could put keys into http; give an https URL, or a file")
        return given

    @field_serializer("embedder")
    def _without_secrets(self, embedder: str) -> str:
        return without_secrets(embedder)

    @model_validator(mode="after")
    def _keys_agree(self) -> Self:
        if self.admin_api_key is not None and self.admin_api_key == self.write_api_key:
            raise ValueError(
                "ADMIN_API_KEY and WRITE_API_KEY are equal, so whoever may search may do everything; give two"
            )
        if self.user_token_secret is not None and self.user_token_jwks is not None:
            raise ValueError("give USER_TOKEN_SECRET or USER_TOKEN_JWKS, for tokens are signed in one way")
        signs = self.user_token_secret is not None or self.user_token_jwks is not None
        if self.write_api_key_requires_user_token and not signs:
            raise ValueError(
                "WRITE_API_KEY_REQUIRES_USER_TOKEN needs USER_TOKEN_SECRET or USER_TOKEN_JWKS to check them"
            )
        return self

    @model_validator(mode="after")
    def _warn_outside_the_documented_range(self) -> Self:
        for name, knob in KNOBS.items():
            value = getattr(self, name)
            if not knob.low <= value <= knob.high:
                logger.warning(
                    "%s=%s is outside the documented range %s to %s; it is used as it is",
                    name.upper(), value, knob.low, knob.high,
                )  # fmt: skip
        return self

    @property
    def embedder_options(self) -> EmbedderOptions:
        return EmbedderOptions(
            query_prompt=self.embedder_query_prompt,
            document_prompt=self.embedder_document_prompt,
            dimensions=self.embedder_dimensions,
            batch_size=self.embedder_batch_size,
            threads=self.embedder_threads,
            part_characters=self.embedder_part_characters,
        )

    @property
    def late_seconds(self) -> int:
        """So long a click waits at the most where a worker runs and keeps up."""
        return LATE_SECONDS if self.improve_on_click else self.improvement_seconds_interval

    @property
    def learning_event_types(self) -> frozenset[str]:
        """Types of event from which something is learnt."""
        return frozenset(kind for kind, weight in self.event_weights.items() if weight > 0)


def load_settings(**given: Any) -> Settings:
    """Return the settings of this process; ``given`` outweighs the environment.

    Raises:
        InvalidSettingError: one cannot work; the message names it and says what would.
    """
    advice = "`embedding-studio settings` lists what each setting takes."
    warn_of_near_misses(Path(".env"), Settings.model_fields)
    try:
        return Settings(**given)
    except SettingsError as error:
        named = re.search(r'field "(\w+)"', str(error))
        what = named[1].upper() if named else "a setting"
        raise InvalidSettingError(f"{what} is not JSON: {error.__cause__}. {advice}") from error
    except ValidationError as error:
        wrong = "; ".join(
            ": ".join([*_named(problem), problem["msg"].removeprefix("Value error, ")])
            for problem in error.errors(include_input=False)
        )
        raise InvalidSettingError(f"{wrong}. {advice}") from error


def _named(problem: Mapping[str, Any]) -> list[str]:
    """Return the setting that is wrong, or none where several are together."""
    name, *inside = map(str, problem["loc"] or ("",))
    return [".".join([name.upper(), *inside])] if name else []


def settings_markdown() -> str:
    """Return the table of all settings for ``docs/settings.md``."""
    rows = ["| variable | default | meaning |", "|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default = field.default
        default = (
            ""
            if default in (None, (), {})
            else json.dumps(default)
            if name == "event_weights"
            else str(default)
        )
        meaning = field.description or ""
        if name in KNOBS:
            knob = KNOBS[name]
            presets = ", ".join(f"`{preset}` = {value:g}" for preset, value in knob.presets.items())
            meaning += f" Documented range {knob.low:g} to {knob.high:g}; presets {presets}."
        rows.append(f"| `{name.upper()}` | {f'`{default}`' if default else 'none'} | {meaning} |")
    return "\n".join(rows)
