#!/usr/bin/python3
"""A double of AnythingLLM for test hosts: the part of its HTTP API that gpurack uses, over the same SQLite tables.

Paths, bodies, answers, tables and columns follow AnythingLLM 1.16 (server/endpoints, server/models,
server/prisma/schema.prisma); what it does not prove is in the README. Python's standard library only.
"""

import base64
import hashlib
import hmac
import json
import os
import re
import secrets
import signal
import sqlite3
import sys
import time
import urllib.request
import uuid
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HOME = Path("/app/server")
ENV_FILE = HOME / ".env"
# Told by the image, to misbehave as a release of the original may: see the README.
FAULT = os.environ.get("GPURACK_DOUBLE_FAULT", "")
DEFAULT_PROMPT = "Given the following conversation, reply with an answer to the current question."
# What the original's dumpENV writes, as far as gpurack or a test sets it: its KEY_MAPPING and its protected keys.
DUMPED = {
    "LLMProvider": "LLM_PROVIDER",
    "OllamaLLMBasePath": "OLLAMA_BASE_PATH",
    "OllamaLLMModelPref": "OLLAMA_MODEL_PREF",
    "OllamaLLMTokenLimit": "OLLAMA_MODEL_TOKEN_LIMIT",
    "EmbeddingEngine": "EMBEDDING_ENGINE",
    "EmbeddingBasePath": "EMBEDDING_BASE_PATH",
    "EmbeddingModelPref": "EMBEDDING_MODEL_PREF",
    "EmbeddingModelMaxChunkLength": "EMBEDDING_MODEL_MAX_CHUNK_LENGTH",
    "VectorDB": "VECTOR_DB",
    "TextToSpeechProvider": "TTS_PROVIDER",
    "DisableTelemetry": "DISABLE_TELEMETRY",
    "AuthToken": "AUTH_TOKEN",
    "JWTSecret": "JWT_SECRET",
    "": ["STORAGE_DIR", "SERVER_PORT", "SIG_KEY", "SIG_SALT", "PASSWORDMINCHAR", "DISABLE_SWAGGER_DOCS"],
}
SCHEMA = """
CREATE TABLE IF NOT EXISTS _prisma_migrations (id TEXT PRIMARY KEY, migration_name TEXT NOT NULL, finished_at DATETIME);
CREATE TABLE IF NOT EXISTS api_keys (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT, secret TEXT UNIQUE,
  createdBy INTEGER, createdAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
  lastUpdatedAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS users (id INTEGER PRIMARY KEY AUTOINCREMENT, username TEXT UNIQUE, password TEXT NOT NULL,
  pfpFilename TEXT, role TEXT NOT NULL DEFAULT 'default', suspended INTEGER NOT NULL DEFAULT 0,
  seen_recovery_codes BOOLEAN DEFAULT false, createdAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
  lastUpdatedAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, dailyMessageLimit INTEGER, bio TEXT DEFAULT '');
CREATE TABLE IF NOT EXISTS workspaces (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,
  slug TEXT NOT NULL UNIQUE, vectorTag TEXT, createdAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, openAiTemp REAL,
  openAiHistory INTEGER NOT NULL DEFAULT 20, lastUpdatedAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
  openAiPrompt TEXT, similarityThreshold REAL DEFAULT 0.25, chatProvider TEXT, chatModel TEXT,
  topN INTEGER DEFAULT 4, chatMode TEXT DEFAULT 'chat', pfpFilename TEXT, agentProvider TEXT, agentModel TEXT,
  queryRefusalResponse TEXT, vectorSearchMode TEXT DEFAULT 'default', router_id INTEGER);
CREATE TABLE IF NOT EXISTS workspace_users (id INTEGER PRIMARY KEY AUTOINCREMENT,
  user_id INTEGER NOT NULL REFERENCES users (id) ON DELETE CASCADE ON UPDATE CASCADE,
  workspace_id INTEGER NOT NULL REFERENCES workspaces (id) ON DELETE CASCADE ON UPDATE CASCADE,
  createdAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, lastUpdatedAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS workspace_chats (id INTEGER PRIMARY KEY AUTOINCREMENT, workspaceId INTEGER NOT NULL,
  prompt TEXT NOT NULL, response TEXT NOT NULL, include BOOLEAN NOT NULL DEFAULT true,
  user_id INTEGER REFERENCES users (id) ON DELETE CASCADE ON UPDATE CASCADE, thread_id INTEGER, api_session_id TEXT,
  createdAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, lastUpdatedAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
  feedbackScore BOOLEAN, memory_processed BOOLEAN);
CREATE TABLE IF NOT EXISTS workspace_threads (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL,
  slug TEXT NOT NULL UNIQUE, workspace_id INTEGER NOT NULL, user_id INTEGER,
  createdAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP, lastUpdatedAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS workspace_documents (id INTEGER PRIMARY KEY AUTOINCREMENT, docId TEXT NOT NULL UNIQUE,
  filename TEXT NOT NULL, docpath TEXT NOT NULL, workspaceId INTEGER NOT NULL, metadata TEXT,
  pinned BOOLEAN DEFAULT false, watched BOOLEAN DEFAULT false, createdAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
  lastUpdatedAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS document_vectors (id INTEGER PRIMARY KEY AUTOINCREMENT, docId TEXT NOT NULL,
  vectorId TEXT NOT NULL, createdAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
  lastUpdatedAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP);
CREATE TABLE IF NOT EXISTS system_settings (id INTEGER PRIMARY KEY AUTOINCREMENT, label TEXT NOT NULL UNIQUE,
  value TEXT, createdAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP,
  lastUpdatedAt DATETIME NOT NULL DEFAULT CURRENT_TIMESTAMP);
"""


def load_env():
    """Take over .env as dotenv does: what the environment has already stays."""
    for line in ENV_FILE.read_text().splitlines():
        if match := re.fullmatch(r"\s*([A-Z_0-9]+)\s*=\s*'?(.*?)'?\s*", line):
            os.environ.setdefault(match[1], match[2])


def dump_env():
    """Write .env over, in place, with every value cut at the first character the original's sanitizeValue minds."""
    names = [name for value in DUMPED.values() for name in ([value] if isinstance(value, str) else value)]
    lines = ["# Auto-dump ENV from system call"]
    for name in names:
        if value := os.environ.get(name):
            cut = re.split("[\n\r\t\v\f\"'`#\u0085\u00a0]", value)[0]
            lines.append(f"{name}='{cut}'")
    ENV_FILE.write_text("\n".join(lines))


class EncryptionManager:
    """Keys as the original's EncryptionManager; the cipher is an HMAC key stream, as there is no AES in Python."""

    def __init__(self):
        if not os.environ.get("SIG_KEY") or not os.environ.get("SIG_SALT"):
            print("[EncryptionManager] Self-assigning key & salt for encrypting arbitrary data.", flush=True)
            os.environ["SIG_KEY"], os.environ["SIG_SALT"] = secrets.token_hex(32), secrets.token_hex(32)
            dump_env()
        key, salt = os.environ["SIG_KEY"].encode(), os.environ["SIG_SALT"].encode()
        self.key = hashlib.scrypt(key, salt=salt, n=16384, r=8, p=1, dklen=32)

    def _stream(self, iv, length):
        blocks = (hmac.digest(self.key, iv + bytes([number]), "sha256") for number in range(length // 32 + 1))
        return b"".join(blocks)[:length]

    def encrypt(self, text):
        """Return ``hex:hex``, with a check sum of the text inside."""
        iv, data = secrets.token_bytes(16), text.encode()
        data = hashlib.sha256(data).digest()[:4] + data
        mixed = bytes(a ^ b for a, b in zip(data, self._stream(iv, len(data)), strict=True))
        return f"{mixed.hex()}:{iv.hex()}"

    def decrypt(self, text):
        """Return the text, or None with another key, as the original."""
        try:
            mixed, iv = (bytes.fromhex(part) for part in text.split(":"))
            data = bytes(a ^ b for a, b in zip(mixed, self._stream(iv, len(mixed)), strict=True))
            return data[4:].decode() if hashlib.sha256(data[4:]).digest()[:4] == data[:4] else None
        except ValueError:
            return None


def database():
    """Return a connection to the database."""
    found = sqlite3.connect(Path(os.environ["STORAGE_DIR"]) / "anythingllm.db", timeout=10)
    found.row_factory = sqlite3.Row
    found.execute("PRAGMA foreign_keys = ON")
    return found


def query(sql, *values):
    """Carry out one statement and return its rows as dictionaries."""
    with closing(database()) as db, db:
        return [dict(row) for row in db.execute(sql, values)]


def migrate():
    """Bring the tables to this version, or fail to, as the image says."""
    with closing(database()) as db, db:
        db.executescript(SCHEMA)
        db.execute(
            "INSERT OR IGNORE INTO _prisma_migrations VALUES (?, ?, CURRENT_TIMESTAMP)", ("20230921191814_init",) * 2
        )
        if FAULT == "lose-rows":
            db.execute("DELETE FROM workspace_chats")
    if FAULT == "migration":
        with closing(database()) as db, db:
            db.execute("DROP TABLE workspace_users")
        sys.exit("Error: P3009 migrate found failed migrations in the target database")


def setting(label, value=None):
    """Return a row of system_settings, or set it."""
    if value is not None:
        query(
            "INSERT INTO system_settings (label, value) VALUES (?, ?) ON CONFLICT (label) DO UPDATE SET value = ?",
            label,
            value,
            value,
        )
    rows = query("SELECT value FROM system_settings WHERE label = ?", label)
    return rows[0]["value"] if rows else None


def multi_user():
    """Tell whether multi-user mode is on."""
    return setting("multi_user_mode") == "true"


def hashed(password, salt=None):
    """Return a password's hash; the original has bcrypt."""
    salt = salt or secrets.token_hex(8)
    return f"{salt}${hashlib.pbkdf2_hmac('sha256', password.encode(), salt.encode(), 1000).hex()}"


def make_jwt(info):
    """Return a token signed with JWT_SECRET."""
    body = base64.urlsafe_b64encode(json.dumps({**info, "iat": int(time.time())}).encode()).decode().rstrip("=")
    return f"double.{body}.{sign(body)}"


def sign(body):
    """Return the signature of a token's body."""
    return hmac.new(os.environ["JWT_SECRET"].encode(), body.encode(), "sha256").hexdigest()


def read_jwt(token):
    """Return a token's content, or an empty dictionary."""
    try:
        _, body, signature = token.split(".")
        if os.environ.get("JWT_SECRET") and hmac.compare_digest(signature, sign(body)):
            return json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except ValueError:
        pass
    return {}


def shown(user):
    """Return a user without what the original filters out."""
    return {key: value for key, value in user.items() if key != "password"}


def create_user(body):
    """Return (user, error) as the original's User.create."""
    name, password, role = body.get("username", ""), body.get("password", ""), body.get("role", "default")
    if len(password) < int(os.environ.get("PASSWORDMINCHAR") or 8):
        return None, f'"password" should be at least {os.environ.get("PASSWORDMINCHAR") or 8} characters long'
    if not re.fullmatch(r"[a-z][a-z0-9._@-]{1,63}", name):
        return None, "Username must start with a lowercase letter"
    if role not in ("default", "admin", "manager"):
        return None, "Invalid role. Allowed roles are: default, admin, manager"
    if query("SELECT id FROM users WHERE username = ?", name):
        return None, "A user with that username already exists"
    query(
        "INSERT INTO users (username, password, role, bio, dailyMessageLimit) VALUES (?, ?, ?, ?, ?)",
        name,
        hashed(password),
        role,
        body.get("bio", ""),
        body.get("dailyMessageLimit"),
    )
    return shown(query("SELECT * FROM users WHERE username = ?", name)[0]), None


def validated(body):
    """Return the writable fields of a workspace, cast as the original's validations do."""
    casts = {
        "name": lambda v: str(v)[:255],
        "openAiTemp": lambda v: None if v is None else float(v),
        "openAiHistory": lambda v: 20 if v is None else int(v),
        "openAiPrompt": lambda v: v or None,
        "similarityThreshold": lambda v: 0.25 if v is None else min(max(float(v), 0), 1),
        "topN": lambda v: 4 if v is None else max(int(v), 1),
        "chatMode": lambda v: v if v in ("chat", "query", "automatic") else "automatic",
        "chatProvider": lambda v: None if v in (None, "", "none") else v,
        "chatModel": lambda v: v or None,
        "queryRefusalResponse": lambda v: v or None,
    }
    fields = {key: cast(body[key]) for key, cast in casts.items() if key in body}
    if fields.get("chatProvider") == "default":
        fields.update(chatProvider=None, chatModel=None)
    return fields


def workspace_of(slug):
    """Return a workspace, or None."""
    rows = query("SELECT * FROM workspaces WHERE slug = ?", slug)
    return rows[0] if rows else None


def ask_ollama(workspace, message):
    """Return the answer of the workspace's model, asked over Ollama's API."""
    body = {
        "model": workspace["chatModel"] or os.environ.get("OLLAMA_MODEL_PREF"),
        "stream": False,
        "messages": [
            {"role": "system", "content": workspace["openAiPrompt"] or DEFAULT_PROMPT},
            {"role": "user", "content": message},
        ],
        "options": {"temperature": 0.7 if workspace["openAiTemp"] is None else workspace["openAiTemp"]},
    }
    request = urllib.request.Request(
        f"{os.environ['OLLAMA_BASE_PATH']}/api/chat", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return json.loads(answer.read())["message"]["content"]


class Handler(BaseHTTPRequestHandler):
    """The API; what is not in it is 404."""

    protocol_version = "HTTP/1.1"
    server_version = "gpurack-anythingllm-double"

    def reply(self, body=None, status=200):
        """Send JSON; without a body the status's name as text, as express does."""
        data = (b"OK" if status == 200 else b"Error") if body is None else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if body is None else "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    @property
    def bearer(self):
        """The token or key of the request."""
        return (self.headers.get("Authorization") or " ").partition(" ")[2]

    def session(self):
        """Return the request's user ({} for the one of single-user mode), or None after a 401."""
        token = read_jwt(self.bearer)
        if multi_user():
            rows = query("SELECT * FROM users WHERE id = ? AND suspended = 0", token.get("id", 0))
            if rows:
                return rows[0]
        elif (
            not (os.environ.get("AUTH_TOKEN") and os.environ.get("JWT_SECRET"))
            or manager.decrypt(token.get("p", "")) == os.environ["AUTH_TOKEN"]
        ):
            return {}
        self.reply({"error": "Invalid auth credentials."}, 401)
        return None

    def do_GET(self):
        """Answer the endpoints that read."""
        self.answer("GET", {})

    def do_DELETE(self):
        """Answer the endpoints that delete."""
        self.answer("DELETE", {})

    def do_POST(self):
        """Answer the endpoints that change."""
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            body = json.loads(raw or b"{}")
        except ValueError as error:
            self.reply({"error": str(error)}, 400)
            return
        self.answer("POST", body)

    def answer(self, method, body):
        """Find the endpoint and call it; the developer API wants a key."""
        path = self.path.partition("?")[0]
        for (wanted, pattern), function in ENDPOINTS.items():
            match = re.fullmatch(pattern, path)
            if wanted != method or not match:
                continue
            if path.startswith("/api/v1/"):
                if not query("SELECT id FROM api_keys WHERE secret = ?", self.bearer):
                    self.reply({"error": "No valid api key found."}, 403)
                    return
                if path.startswith("/api/v1/admin/") and not path.endswith("-mode") and not multi_user():
                    self.reply(status=401)
                    return
            try:
                function(self, body, *match.groups())
            except Exception as error:
                print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
                self.reply(status=500)
            return
        self.reply(status=404)

    def log_message(self, *_):
        """Say nothing for every request."""

    def request_token(self, body):
        """POST /api/request-token."""
        if not multi_user():
            if body.get("password") != os.environ.get("AUTH_TOKEN"):
                self.reply({"valid": False, "token": None, "message": "[003] Invalid password provided"}, 401)
                return
            token = make_jwt({"p": manager.encrypt(body["password"])})
            self.reply({"valid": True, "token": token, "message": None})
            return
        rows = query("SELECT * FROM users WHERE username = ?", body.get("username"))
        message = "[001] Invalid login credentials."
        if rows:
            salt = rows[0]["password"].partition("$")[0]
            message = "[002] Invalid login credentials."
            if hashed(body.get("password", ""), salt) == rows[0]["password"]:
                message = "[004] Account suspended by admin." if rows[0]["suspended"] else None
        if message:
            self.reply({"user": None, "valid": False, "token": None, "message": message})
            return
        token = make_jwt({"id": rows[0]["id"], "username": rows[0]["username"]})
        self.reply({"valid": True, "user": shown(rows[0]), "token": token, "message": None})

    def enable_multi_user(self, body):
        """POST /api/system/enable-multi-user."""
        if self.session() is None:
            return
        if multi_user():
            self.reply({"success": False, "error": "Multi-user mode is already enabled."})
            return
        user, error = create_user({**body, "role": "admin"})
        if error:
            self.reply({"success": False, "error": error}, 400)
            return
        setting("multi_user_mode", "true")
        os.environ.setdefault("JWT_SECRET", str(uuid.uuid4()))
        dump_env()
        self.reply({"success": bool(user), "error": None})

    def generate_api_key(self, body):
        """POST /api/admin/generate-api-key."""
        user = self.session()
        if user is None:
            return
        if user.get("role") != "admin":
            self.reply(status=401)
            return
        secret = "-".join(secrets.token_hex(4).upper()[:7] for _ in range(4))
        query("INSERT INTO api_keys (name, secret, createdBy) VALUES (?, ?, ?)", body.get("name"), secret, user["id"])
        self.reply({"apiKey": query("SELECT * FROM api_keys WHERE secret = ?", secret)[0], "error": None})

    def update_env(self, body):
        """POST /api/system/update-env: the environment changes at once, and .env with it."""
        user = self.session()
        if user is None:
            return
        if user and user["role"] != "admin":
            self.reply(status=401)
            return
        new = {key: value for key, value in body.items() if key and key in DUMPED}
        os.environ.update({DUMPED[key]: value for key, value in new.items()})
        dump_env()
        self.reply({"newValues": new, "error": False})

    def users(self, _):
        """GET /api/v1/admin/users."""
        self.reply({"users": [shown(user) for user in query("SELECT * FROM users")]})

    def new_user(self, body):
        """POST /api/v1/admin/users/new."""
        user, error = create_user(body)
        self.reply({"user": user, "error": error}, 200 if user else 400)

    def update_user(self, body, number):
        """POST /api/v1/admin/users/:id."""
        user = query("SELECT * FROM users WHERE id = ?", number)[0]
        admins = query("SELECT count(*) AS n FROM users WHERE role = 'admin'")[0]["n"]
        if user["role"] == "admin" and body.get("role", "admin") != "admin" and admins < 2:
            error = "No system admins will remain if you do this. Update failed."
            self.reply({"success": False, "error": error})
            return
        for key, value in body.items():
            if key in ("role", "suspended", "dailyMessageLimit", "bio"):
                query(f"UPDATE users SET {key} = ? WHERE id = ?", value, number)
        if "password" in body:
            query("UPDATE users SET password = ? WHERE id = ?", hashed(body["password"]), number)
        self.reply({"success": True, "error": None})

    def preferences(self, body):
        """POST /api/v1/admin/preferences, for what the original validates in systemSettings.js of the same names."""
        values = {}
        if "agent_search_provider" in body:
            provider = body["agent_search_provider"]
            values["agent_search_provider"] = provider if provider in ("searxng-engine", "duckduckgo-engine") else None
        if "default_agent_skills" in body:
            skills = [skill for skill in str(body["default_agent_skills"]).split(",") if skill]
            values["default_agent_skills"] = json.dumps(skills, separators=(",", ":"))
        for label, value in values.items():
            query(
                "INSERT INTO system_settings (label, value) VALUES (?, ?) "
                "ON CONFLICT (label) DO UPDATE SET value = excluded.value",
                label,
                value,
            )
        self.reply({"success": True, "error": None})

    def delete_user(self, _, number):
        """DELETE /api/v1/admin/users/:id."""
        query("DELETE FROM users WHERE id = ?", number)
        self.reply({"success": True, "error": None})

    def workspaces(self, _):
        """GET /api/v1/workspaces."""
        self.reply({"workspaces": [{**row, "threads": []} for row in query("SELECT * FROM workspaces")]})

    def workspace(self, _, slug):
        """GET /api/v1/workspace/:slug: a list."""
        found = workspace_of(slug)
        self.reply({"workspace": [{**found, "documents": [], "threads": []}] if found else []})

    def new_workspace(self, body):
        """POST /api/v1/workspace/new."""
        if not body.get("name"):
            self.reply({"workspace": None, "message": "name cannot be null"}, 400)
            return
        slug = re.sub(r"[^a-z0-9]+", "-", body["name"].lower()).strip("-") or str(uuid.uuid4())
        if workspace_of(slug):
            slug += f"-{secrets.randbelow(90000000) + 10000000}"
        fields = {"chatMode": "automatic", **validated(body), "slug": slug}
        if not fields.get("openAiPrompt"):
            fields["openAiPrompt"] = DEFAULT_PROMPT
        marks = ", ".join("?" * len(fields))
        query(f"INSERT INTO workspaces ({', '.join(fields)}) VALUES ({marks})", *fields.values())
        self.reply({"workspace": workspace_of(slug), "message": None})

    def update_workspace(self, body, slug):
        """POST /api/v1/workspace/:slug/update."""
        if not workspace_of(slug):
            self.reply(status=400)
            return
        for key, value in validated(body).items():
            query(f"UPDATE workspaces SET {key} = ? WHERE slug = ?", value, slug)
        self.reply({"workspace": workspace_of(slug), "message": None})

    def members(self, _, number):
        """GET /api/v1/admin/workspaces/:workspaceId/users."""
        rows = query(
            "SELECT DISTINCT users.id AS userId, username, role FROM users JOIN workspace_users ON user_id = users.id "
            "WHERE workspace_id = ?",
            number,
        )
        self.reply({"users": rows})

    def set_members(self, body, number):
        """POST /api/v1/admin/workspaces/:workspaceId/update-users."""
        query("DELETE FROM workspace_users WHERE workspace_id = ?", number)
        for user in body["userIds"]:
            query("INSERT INTO workspace_users (user_id, workspace_id) VALUES (?, ?)", user, number)
        self.reply({"success": True, "error": None})

    def manage_users(self, body, slug):
        """POST /api/v1/admin/workspaces/:workspaceSlug/manage-users."""
        known = [row["id"] for row in query("SELECT id FROM users")]
        users = [user for user in body["userIds"] if user in known]
        if not users:
            self.reply({"success": False, "error": "No valid user IDs provided.", "users": []}, 404)
            return
        workspace = workspace_of(slug)
        self.set_members({"userIds": users}, workspace["id"])

    def chat(self, body, slug):
        """POST /api/v1/workspace/:slug/chat."""
        workspace, number = workspace_of(slug), str(uuid.uuid4())
        failed = {"id": number, "textResponse": None, "sources": [], "close": True}
        if not workspace or not body.get("message"):
            self.reply({**failed, "error": f"Workspace {slug} is not a valid workspace."}, 400)
            return
        try:
            text = ask_ollama(workspace, body["message"])
        except OSError as error:
            self.reply({**failed, "error": f"Ollama: {error}"}, 500)
            return
        answer = {"text": text, "sources": [], "type": body.get("mode") or workspace["chatMode"]}
        query(
            "INSERT INTO workspace_chats (workspaceId, prompt, response) VALUES (?, ?, ?)",
            workspace["id"],
            body["message"],
            json.dumps(answer),
        )
        self.reply({**failed, "type": "textResponse", "textResponse": text, "error": None})

    def setup_complete(self, _):
        """GET /api/setup-complete: what of the environment is in force."""
        values = {key: os.environ.get(name) for key, name in DUMPED.items() if isinstance(name, str)}
        for key in ("AuthToken", "JWTSecret"):
            values[key] = bool(values[key])
        self.reply({"results": {**values, "MultiUserMode": multi_user()}})

    def keep(self, body):
        """POST /api/double/keep: the double's own, in place of what the original encrypts with SIG_KEY and SIG_SALT."""
        if self.session() is not None:
            setting("double_kept", manager.encrypt(body["text"]))
            self.reply({"success": True})

    def kept(self, _):
        """GET /api/double/keep: the text, or null if the key is another one."""
        self.reply({"text": manager.decrypt(setting("double_kept") or "")})


ENDPOINTS = {
    ("GET", "/api/ping"): lambda handler, _: handler.reply({"online": True}),
    ("GET", "/api/setup-complete"): Handler.setup_complete,
    ("GET", "/api/system/multi-user-mode"): lambda handler, _: handler.reply({"multiUserMode": multi_user()}),
    ("POST", "/api/request-token"): Handler.request_token,
    ("POST", "/api/system/enable-multi-user"): Handler.enable_multi_user,
    ("POST", "/api/system/update-env"): Handler.update_env,
    ("POST", "/api/admin/generate-api-key"): Handler.generate_api_key,
    ("GET", "/api/v1/auth"): lambda handler, _: handler.reply({"authenticated": True}),
    ("GET", "/api/v1/admin/is-multi-user-mode"): lambda handler, _: handler.reply({"isMultiUser": multi_user()}),
    ("GET", "/api/v1/admin/users"): Handler.users,
    ("POST", "/api/v1/admin/users/new"): Handler.new_user,
    ("POST", "/api/v1/admin/preferences"): Handler.preferences,
    ("POST", r"/api/v1/admin/users/(\d+)"): Handler.update_user,
    ("DELETE", r"/api/v1/admin/users/(\d+)"): Handler.delete_user,
    ("GET", r"/api/v1/admin/workspaces/(\d+)/users"): Handler.members,
    ("POST", r"/api/v1/admin/workspaces/(\d+)/update-users"): Handler.set_members,
    ("POST", r"/api/v1/admin/workspaces/([^/]+)/manage-users"): Handler.manage_users,
    ("GET", "/api/v1/workspaces"): Handler.workspaces,
    ("POST", "/api/v1/workspace/new"): Handler.new_workspace,
    ("GET", "/api/v1/workspace/([^/]+)"): Handler.workspace,
    ("POST", "/api/v1/workspace/([^/]+)/update"): Handler.update_workspace,
    ("POST", "/api/v1/workspace/([^/]+)/chat"): Handler.chat,
    ("POST", "/api/double/keep"): Handler.keep,
    ("GET", "/api/double/keep"): Handler.kept,
}


def main():
    """Migrate, then serve; or do what the image's fault says."""
    # Process 1 of a container has no default handler: without this every stop would wait until it is killed.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    os.environ.setdefault("STORAGE_DIR", str(HOME / "storage"))
    migrate()
    print("Primary server in HTTP mode listening on port 3001", flush=True)
    if FAULT == "silent":
        signal.pause()
    ThreadingHTTPServer(("", int(os.environ.get("SERVER_PORT") or 3001)), Handler).serve_forever()


if __name__ == "__main__":
    if sys.argv[1:] == ["health"]:
        port = os.environ.get("SERVER_PORT") or "3001"
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/ping", timeout=5) as pong:
            sys.exit(pong.status != 200)
    load_env()
    manager = EncryptionManager()
    main()
