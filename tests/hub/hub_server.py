"""A stand-in for the Hub on the loopback interface: repos, branches, pull requests, LFS, tokens, faults on demand."""

import base64
import hashlib
import json
import re
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit


REVISION = r"(?P<revision>refs/pr/[0-9]+|[^/]+)"
REPO = re.compile(rf"/api/models/(?P<id>[^/]+/[^/]+?)(?:/(?P<op>[a-z-]+)(?:/{REVISION}(?:/(?P<path>.+))?)?)?")
RESOLVE = re.compile(rf"/(?P<id>[^/]+/[^/]+)/(?P<op>resolve)/{REVISION}/(?P<path>.+)")
LFS_BATCH = re.compile(r"/(?P<id>[^/]+/[^/]+)\.git/info/lfs/objects/batch")


def blob_id(data: bytes) -> str:
    """Name of a blob in git."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """Commits are whole trees: `{commit: {path: content}}`."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    titles: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: dict[str, bytes], title: str) -> str:
        oid = hashlib.sha1(f"{len(self.commits)}{branch}{title}".encode()).hexdigest()
        self.commits[oid], self.branches[branch] = files, oid
        self.titles.append(title)
        return oid

    def files(self, branch: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches[branch]]


@dataclass
class Fault:
    """
    What happens to the next `times` requests of `method` whose path matches `path`.

    `status` answers with that code, `drop` closes the connection without an answer after half of the request's body
    has been read, `delay` waits that many seconds first.
    """

    method: str
    path: str
    times: int = 1
    status: int | None = None
    drop: bool = False
    delay: float = 0.0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "HubServer"

    def log_message(self, *args) -> None:
        pass

    # -------------------------------------------------------------------------------------------------------- answers
    def reply(self, code: int, body=b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        defaults = {"Content-Type": "application/json", "Content-Length": str(len(data))}
        self.send_response(code)
        for name, value in (defaults | {key.replace("_", "-"): value for key, value in headers.items()}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: int, message: str, kind: str = "") -> None:
        headers = {"X_Error_Code": kind} if kind else {}
        self.reply(code, {"error": message}, X_Error_Message=message, **headers)

    def read(self, count: int | None = None) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline(), 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0) if count is None else count)

    # --------------------------------------------------------------------------------------------------------- routes
    def route(self) -> None:
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        fault = self.server.fault(self.command, path)
        if fault is not None:
            time.sleep(fault.delay)
            if fault.drop:
                self.read(int(self.headers.get("Content-Length") or 0) // 2)
                self.close_connection = True
                return
            if fault.status is not None:
                self.read()
                self.refuse(fault.status, f"injected {fault.status}")
                return
        body = self.read()
        with self.server.lock:
            self.server.requests.append((self.command, path))
            self.answer(path, query, body)

    def answer(self, path: str, query: dict, body: bytes) -> None:
        server = self.server
        user, role = server.tokens.get(self.headers.get("Authorization", "")[len("Bearer ") :], (None, None))
        if path.startswith("/lfs/"):
            return self.lfs_object(path.removeprefix("/lfs/"), body)
        if user is None and (self.command == "POST" or path == "/api/whoami-v2") and path != "/api/validate-yaml":
            return self.refuse(401, "Invalid username or password.")
        if path == "/api/whoami-v2":
            access = {"displayName": "token", "role": role}
            identity = {"type": "user", "name": user, "fullname": user, "orgs": []}
            return self.reply(200, identity | {"auth": {"type": "access_token", "accessToken": access}})
        if path == "/api/validate-yaml":
            return self.reply(200, {"errors": server.card_errors, "warnings": []})
        if self.command == "POST" and role != "write" and "/preupload/" not in path:
            return self.refuse(403, "You don't have the rights to write to this repo: use a token with write access.")
        if path == "/api/repos/create":
            return self.create(user, json.loads(body))
        match = LFS_BATCH.fullmatch(path)
        if match:
            return self.lfs_batch(json.loads(body)["objects"])
        match = REPO.fullmatch(path) or RESOLVE.fullmatch(path)
        repo = server.repos.get(match["id"]) if match else None
        if match is None or repo is None or (repo.private and user != match["id"].split("/")[0]):
            return self.refuse(404 if user else 401, "Repository not found", "RepoNotFound")
        return self.repository(repo, match, query, body)

    def create(self, user: str, request: dict) -> None:
        name = f"{request.get('organization') or user}/{request['name']}"
        answer = {"url": f"{self.server.endpoint}/{name}", "name": name}
        if name in self.server.repos:
            return self.reply(409, answer | {"error": "You already created this model repo"})
        repo = self.server.repos[name] = Repo(private=request.get("visibility") == "private")
        repo.commit("main", {}, "initial commit")
        return self.reply(200, answer)

    def repository(self, repo: Repo, match: re.Match, query: dict, body: bytes) -> None:
        name, op, revision = match["id"], match["op"], match["revision"] or "main"
        if op == "branch":
            if revision.startswith("refs/"):
                return self.refuse(400, f"Invalid name of a branch: {revision}")
            if revision in repo.branches:
                return self.refuse(409, f"Reference already exists: {revision}")
            repo.branches[revision] = repo.branches["main"]
            return self.reply(200, {})
        oid = repo.branches.get(revision) or (revision if revision in repo.commits else None)
        if oid is None:
            return self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = repo.commits[oid]
        if op in (None, "revision"):
            siblings = [{"rfilename": path} for path in sorted(files)]
            info = {"id": name, "modelId": name, "sha": oid, "private": repo.private, "tags": [], "siblings": siblings}
            return self.reply(200, info)
        if op == "preupload":
            return self.reply(200, {"files": [self.upload_mode(file, files) for file in json.loads(body)["files"]]})
        if op == "commit":
            return self.commit(repo, name, revision, query, body)
        if op == "tree":
            return self.tree(files, match["path"])
        if op == "resolve":
            return self.resolve(oid, files, match["path"])
        return self.refuse(404, f"No such route: {op}")

    def upload_mode(self, file: dict, files: dict[str, bytes]) -> dict:
        path = file["path"]
        # As the Hub does: binary files go to LFS.
        mode = "lfs" if b"\0" in base64.b64decode(file["sample"]) else "regular"
        known = self.server.oid(files[path]) if path in files else None
        return {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": known}

    def commit(self, repo: Repo, name: str, revision: str, query: dict, body: bytes) -> None:
        files, title = dict(repo.files(revision)), ""
        for line in map(json.loads, body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header":
                title = value["summary"]
            elif key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.objects:
                    return self.refuse(400, f"LFS pointer to an object that was not uploaded: {value['path']}")
                files[value["path"]] = self.server.objects[value["oid"]]
            elif key == "deletedFile":
                files.pop(value["path"], None)
        answer: dict = {"success": True}
        if "create_pr" in query:
            number = 1 + sum(branch.startswith("refs/pr/") for branch in repo.branches)
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.server.endpoint}/{name}/discussions/{number}"
        oid = repo.commit(revision, files, title)
        return self.reply(200, answer | {"commitOid": oid, "commitUrl": f"{self.server.endpoint}/{name}/commit/{oid}"})

    def tree(self, files: dict[str, bytes], folder: str | None) -> None:
        prefix = f"{folder}/" if folder else ""
        entries = []
        for path, data in sorted(files.items()):
            if path.startswith(prefix):
                entry = {"type": "file", "path": path, "size": len(data), "oid": blob_id(data)}
                if self.server.is_large(data):
                    entry["lfs"] = {"oid": self.server.oid(data), "size": len(data), "pointerSize": 130}
                entries.append(entry)
        if prefix and not entries:
            return self.refuse(404, f"{folder} does not exist", "EntryNotFound")
        return self.reply(200, entries)

    def resolve(self, commit: str, files: dict[str, bytes], path: str) -> None:
        if path not in files:
            return self.reply(404, b"Entry not found", X_Error_Code="EntryNotFound", X_Repo_Commit=commit)
        data, oid = files[path], self.server.oid(files[path])
        headers = {"X_Repo_Commit": commit, "ETag": f'"{oid}"', "Content_Type": "application/octet-stream"}
        if not self.server.is_large(data):
            return self.reply(200, data, **headers)
        linked = {"X_Linked_Size": str(len(data)), "X_Linked_ETag": f'"{oid}"'}
        return self.reply(302, Location=f"{self.server.storage}/lfs/{oid}", **headers, **linked)

    # ------------------------------------------------------------------------------------------------------------ LFS
    def lfs_batch(self, objects: list[dict]) -> None:
        answer = []
        for item in objects:
            entry = {"oid": item["oid"], "size": item["size"]}
            if item["oid"] not in self.server.objects:
                entry["actions"] = {"upload": {"href": f"{self.server.storage}/lfs/{item['oid']}"}}
            answer.append(entry)
        self.reply(200, {"transfer": "basic", "objects": answer})

    def lfs_object(self, oid: str, body: bytes) -> None:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                return self.refuse(400, "The content does not have the announced SHA-256.")
            self.server.objects[oid] = body
            return self.reply(200)
        if oid not in self.server.objects:
            return self.refuse(404, "No such object")
        return self.reply(200, self.server.objects[oid], Content_Type="application/octet-stream")

    do_GET = do_HEAD = do_POST = do_PUT = route


class HubServer(ThreadingHTTPServer):
    """Start it with `with HubServer() as hub:`; the client's `HF_ENDPOINT` is `hub.endpoint`."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server_address[1]}"
        # The Hub keeps large files on another host, and the client tells redirects to it from those within the Hub.
        self.storage = self.endpoint.replace("127.0.0.1", "localhost")
        self.tokens = {"hf_write": ("tester", "write"), "hf_read": ("tester", "read")}
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.faults: list[Fault] = []
        self.card_errors: list[dict] = []
        self.lock = threading.RLock()

    def fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def is_large(self, data: bytes) -> bool:
        return hashlib.sha256(data).hexdigest() in self.objects

    def oid(self, data: bytes) -> str:
        return hashlib.sha256(data).hexdigest() if self.is_large(data) else blob_id(data)

    def handle_error(self, request, client_address) -> None:
        """A client that goes away is no concern of the server's."""

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exception) -> None:
        self.shutdown()
        self.server_close()
