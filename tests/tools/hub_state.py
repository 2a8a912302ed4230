# Copyright 2026 The peft-polyhistor authors.
# SPDX-License-Identifier: Apache-2.0
"""State and answers of the small Hub of the tests, all in memory."""

import base64
import hashlib
from dataclasses import dataclass, field
from itertools import count

from hub_metadata import check_metadata, read_metadata, tags_of


NUMBERS = count()
LARGE = (".safetensors", ".bin", ".png")  # kept by the LFS protocol, whatever their size


class RefusalError(Exception):
    """An answer that is an error; `code` is what huggingface_hub tells errors apart by."""

    def __init__(self, status: int, message: str, code: str = "", **body):
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}


@dataclass
class Repo:
    """Files by path at each commit; `refs` are branches and, under `refs/pr/`, pull requests."""

    private: bool
    gated: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"0" * 40: {}})
    refs: dict[str, str] = field(default_factory=lambda: {"main": "0" * 40})

    def resolve(self, revision: str) -> str:
        commit = self.refs.get(revision, revision)
        if commit not in self.commits:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return commit

    def add(self, revision: str, files: dict[str, bytes]) -> str:
        # A hash that no other commit has, of whatever repository: clients never ask for the same one twice.
        commit = hashlib.sha1(f"commit {next(NUMBERS)}".encode()).hexdigest()
        self.commits[commit] = files
        self.refs[revision] = commit
        return commit


def oid(path: str, content: bytes) -> str:
    """The id of a version of a file: sha256 of large files, the hash of git of others."""
    if path.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Hub:
    """The state of the server, and how it answers.

    `tokens` are names of users by token, `cuts` how many of the next uploads of large files break off half-way
    (`None`: all), `uploaded` the sizes of those that arrived, in bytes. A request whose path contains `dropped` gets
    no answer.
    """

    def __init__(self):
        self.url = ""
        self.tokens = {"hf_ann": "ann", "hf_bob": "bob"}
        self.reset()

    def reset(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, bytes] = {}
        self.cuts: int | None = 0
        self.dropped = ""
        self.uploaded: list[int] = []

    def user(self, token: str | None) -> str | None:
        if token and token not in self.tokens:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return self.tokens.get(token)

    def readable(self, name: str, token: str | None) -> Repo:
        user, repo = self.user(token), self.repos.get(name)
        if repo is None or (repo.private and user != name.partition("/")[0]):
            raise RefusalError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, name: str, token: str | None) -> Repo:
        repo = self.readable(name, token)
        if self.user(token) != name.partition("/")[0]:
            raise RefusalError(403 if self.user(token) else 401, "You have no right to write here")
        return repo

    def info(self, name: str, repo: Repo, commit: str) -> dict:
        card = read_metadata(repo.commits[commit].get("README.md", b"").decode())
        siblings = [{"rfilename": path} for path in repo.commits[commit]]
        known = {key: card[key] for key in ("pipeline_tag", "library_name") if key in card} | {"tags": tags_of(card)}
        return {"id": name, "sha": commit, "private": repo.private, "siblings": siblings, **known}

    # Each of the methods below answers one request; its arguments are the groups of the pattern, by name.

    def create(self, token, body, query) -> dict:
        user = self.user(token)
        name = f"{body.get('organization') or user}/{body['name']}"
        if user is None or not name.startswith(f"{user}/"):
            raise RefusalError(403 if user else 401, "You have no right to create this repository")
        if name in self.repos:
            raise RefusalError(409, "You already created this model repo", url=f"{self.url}/{name}")
        # Clients send the one or the other, by their version.
        self.repos[name] = Repo(body.get("visibility") == "private" or body.get("private", False))
        return {"url": f"{self.url}/{name}", "name": name}

    def validate(self, token, body, query) -> dict:
        errors = check_metadata(body["content"])
        if errors:
            raise RefusalError(400, "Invalid metadata", errors=[{"message": error} for error in errors], warnings=[])
        return {"errors": [], "warnings": []}

    def branch(self, token, body, query, repo, branch) -> dict:
        known = self.writable(repo, token)
        if branch in known.refs:
            raise RefusalError(409, f"Reference already exists: {branch}")
        known.refs[branch] = known.resolve(body.get("startingPoint", "main"))
        return {}

    def refs(self, token, body, query, repo) -> dict:
        refs = self.readable(repo, token).refs.items()
        lists = {"branches": [], "pullRequests": [], "converts": [], "tags": []}
        for name, commit in refs:
            ref = {"name": name, "ref": name, "targetCommit": commit}
            lists["pullRequests" if name.startswith("refs/pr/") else "branches"].append(ref)
        return lists

    def preupload(self, token, body, query, repo, revision) -> dict:
        known = self.readable(repo, token) if "create_pr" in query else self.writable(repo, token)
        files = known.commits[known.resolve(revision)]
        return {
            "files": [
                {
                    "path": path,
                    "uploadMode": "lfs" if path.endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                    "oid": oid(path, files[path]) if path in files else None,
                }
                for path in (file["path"] for file in body["files"])
            ]
        }

    def batch(self, token, body, query, repo) -> dict:
        if self.user(token) is None:
            raise RefusalError(401, "Invalid username or password")
        objects = []
        for item in body["objects"]:
            upload = {"actions": {"upload": {"href": f"{self.url}/lfs/{item['oid']}"}}}
            objects.append({**item, **({} if item["oid"] in self.blobs else upload)})
        return {"transfer": "basic", "objects": objects}

    def commit(self, token, body, query, repo, revision) -> dict:
        opens = "create_pr" in query
        known = self.readable(repo, token) if opens else self.writable(repo, token)
        files = dict(known.commits[known.resolve(revision)])
        for item in body[1:]:
            value = item["value"]
            if item["key"] == "deletedFile":
                del files[value["path"]]
                continue
            is_large = item["key"] == "lfsFile"
            files[value["path"]] = self.blobs[value["oid"]] if is_large else base64.b64decode(value["content"])
        number = 1 + sum(ref.startswith("refs/pr/") for ref in known.refs)
        commit = known.add(f"refs/pr/{number}" if opens else revision, files)
        answer = {"commitUrl": f"{self.url}/{repo}/commit/{commit}", "commitOid": commit}
        return {**answer, "pullRequestUrl": f"{self.url}/{repo}/discussions/{number}"} if opens else answer

    def models(self, token, body, query) -> list:
        user, found = self.user(token), []
        for name, repo in self.repos.items():
            info = self.info(name, repo, repo.refs["main"])
            is_seen = not repo.private or user == name.partition("/")[0]
            if is_seen and set(query.get("filter", [])) <= set(info["tags"]):
                found.append(info)
        return found

    def model(self, token, body, query, repo, revision="main") -> dict:
        known = self.readable(repo, token)
        return self.info(repo, known, known.resolve(revision))

    def tree(self, token, body, query, repo, revision) -> list:
        known = self.readable(repo, token)
        files = []
        for path, content in known.commits[known.resolve(revision)].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": oid(path, content)}
            lfs = {"lfs": {"oid": entry["oid"], "size": len(content), "pointerSize": 130}}
            files.append(entry | (lfs if path.endswith(LARGE) else {}))
        return files

    def file(self, token, body, query, repo, revision, path) -> tuple[bytes, dict]:
        known = self.readable(repo, token)
        commit = known.resolve(revision)
        if known.gated and self.user(token) != repo.partition("/")[0]:
            raise RefusalError(403 if self.user(token) else 401, "Access to the model is restricted", "GatedRepo")
        content = known.commits[commit].get(path)
        if content is None:
            refusal = RefusalError(404, "Entry not found", "EntryNotFound")
            refusal.headers["X-Repo-Commit"] = commit  # by which clients record that there is no such file
            raise refusal
        etag, size = f'"{oid(path, content)}"', str(len(content))
        linked = {"X-Linked-Etag": etag, "X-Linked-Size": size} if path.endswith(LARGE) else {}
        return content, {"ETag": etag, "X-Repo-Commit": commit, **linked}
