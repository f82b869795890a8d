"""What is done about models, decided from what is declared and what is there; and how a host's answers are read."""

from __future__ import annotations

import base64
import hashlib
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpurack.facts.ollama import Models, RegistryManifests, Served, moment
from gpurack.lab import tinymodel
from gpurack.ollama import modelfiles, plan
from gpurack.ollama.api import meaning
from gpurack.ollama.modelfiles import ModelFileError
from gpurack.ollama.names import ModelName
from gpurack.ollama.plan import Blob, Found, Installed, Loaded, Record, Wanted
from gpurack.operations.ollama import obstacles

A, B, C = (ModelName.parse(text) for text in "abc")
D1, D2 = "1" * 64, "2" * 64
GIB = 1024**3


def found(*models: tuple[ModelName, str], records: tuple[Record, ...] = ()) -> Found:
    """Return a host that has these models."""
    return Found(
        up=True,
        models={name.key: Installed(name, digest, 5) for name, digest in models},
        records={record.name.key: record for record in records},
    )


def test_what_is_missing_or_of_another_digest_is_pulled_once() -> None:
    wanted = [Wanted(A), Wanted(B, digest=D1), Wanted(C, base=A, layers={"system": "x"})]
    assert [pull.name for pull in plan.pulls(wanted, Found())] == [A, B]
    assert [pull.name for pull in plan.pulls(wanted, found((A, D1), (B, D2)))] == [B]
    assert not plan.pulls(wanted, found((A, D1), (B, D1)))


def test_a_base_that_is_not_declared_is_pulled_and_is_not_unlisted() -> None:
    wanted = [Wanted(C, base=A, layers={"system": "x"})]
    assert [pull.name for pull in plan.pulls(wanted, Found())] == [A]
    assert not plan.unlisted(wanted, [], found((A, D1), (C, D2)))
    assert [model.name for model in plan.unlisted(wanted, [], found((A, D1), (B, D1), (C, D2)))] == [B]


def test_parameters_on_a_pulled_name_adopt_the_plain_model_but_not_what_was_made() -> None:
    model = Wanted(A, layers={"parameters": {"num_ctx": 512}})
    [pull] = plan.pulls([model], found((A, D1)))
    assert pull.adopt and pull.keep_as == A.base
    made = Record(A, model.recipe(D1), D2)
    [pull] = plan.pulls([model], found((A, D2), records=(made,)))
    assert not pull.adopt  # the base is gone, and the name is what was made of it
    assert not plan.pulls([model], found((A, D2), (A.base, D1), records=(made,)))


def test_what_was_made_is_current_until_anything_of_it_changes() -> None:
    model = Wanted(C, base=A, layers={"system": "x"})
    record = Record(C, model.recipe(D1), D2)
    assert plan.is_current(model, found((A, D1), (C, D2), records=(record,)))
    assert not plan.is_current(model, found((A, D2), (C, D2), records=(record,)))
    assert not plan.is_current(model, found((A, D1), (C, D1), records=(record,)))
    assert not plan.is_current(Wanted(C, base=A, layers={"system": "y"}), found((A, D1), (C, D2), records=(record,)))
    assert not plan.is_current(model, found((A, D1), (C, D2)))


def test_a_model_that_lacks_a_part_is_pulled_again_and_its_cut_file_goes() -> None:
    host = found((A, D1))
    host.disk.manifests[A.key] = {"sha256:aa": 10, "sha256:bb": 20}
    host.disk.blobs = {"sha256-aa": Blob(10, 4096), "sha256-bb": Blob(19, 4096)}
    assert [pull.name for pull in plan.pulls([Wanted(A)], host)] == [A]
    assert host.damaged([A]) == {"sha256-bb"}


NAMES = st.sampled_from([ModelName.parse(text) for text in ("a", "b", "c", "d", "x/e:1", "reg:5/n/f:2")])


@given(st.sets(NAMES), st.sets(NAMES), st.sets(NAMES), st.booleans())
def test_nothing_declared_is_ever_removed(
    declared: set[ModelName], absent: set[ModelName], there: set[ModelName], allowed: bool
) -> None:
    absent -= declared
    wanted = [
        Wanted(name, layers={"system": "x"} if number % 2 else {})
        for number, name in enumerate(sorted(declared, key=str))
    ]
    host = found(*((name, D1) for name in there | {name.base for name in declared} | {A.kept}))
    gone = {model.name for model in plan.removals(wanted, absent, host, remove_unlisted=allowed)}
    needed = {name for model in wanted for name in (model.name, model.source) if name}
    assert not gone & needed
    assert absent & there <= gone
    unlisted = there - declared - absent
    assert unlisted <= gone if allowed else not unlisted & gone
    assert A.kept in gone


def test_what_stays_for_ever_is_loaded_only_as_it_is_now() -> None:
    host, now = found((A, D1)), datetime.now(UTC)
    model = Wanted(A, keep_alive="forever")
    for digest, left, expected in ((D1, 3650, True), (D1, 1, False), (D2, 3650, False)):
        host.loaded = {A.key: Loaded(A, digest, 1, 0, now + timedelta(days=left))}
        assert plan.is_loaded(model, host, now) is expected
    assert plan.is_loaded(Wanted(A, keep_alive=timedelta(minutes=5)), found(), now) is False


def test_room_is_counted_without_what_is_there_and_the_reserve_is_kept() -> None:
    host = Found(up=True)
    host.disk.free = 20 * GIB
    host.disk.blobs = {"sha256-aa": Blob(4 * GIB, 4 * GIB), "sha256-bb-partial": Blob(8 * GIB, 3 * GIB)}
    served = {A.key: Served(200, D1, {"sha256:aa": 4 * GIB, "sha256:bb": 8 * GIB})}
    assert not obstacles([Wanted(A)], host, served, "/srv/ollama", 15)
    [problem] = obstacles([Wanted(A)], host, served, "/srv/ollama", 16)
    assert "20.0 GiB are free, 5.0 GiB are needed (a:latest 5.0 GiB)" in problem and "1.0 GiB are missing" in problem
    [problem] = obstacles([Wanted(A, digest=D2)], host, served, "/srv/ollama", 0)
    assert f"serves sha256:{D1}, and digest pins sha256:{D2}" in problem
    [problem] = obstacles([Wanted(A)], host, {A.key: Served(404)}, "/srv/ollama", 0)
    assert "has no such model" in problem
    assert not obstacles([Wanted(A)], host, {A.key: Served(0)}, "/srv/ollama", 0)


def test_a_hosts_answers_are_read() -> None:
    manifest = {"layers": [{"digest": "sha256:aa", "size": 7}], "config": {"digest": "sha256:cc", "size": 1}}
    expires = "2318-03-07T12:00:00.123456789+01:00"
    lines = [
        "tags " + json.dumps({"models": [{"name": "a:latest", "digest": D1, "size": 8}]}),
        "ps " + json.dumps({"models": [{"name": "a:latest", "digest": D1, "size": 8, "expires_at": expires}]}),
        "free 12345",
        "blob sha256-aa 7 8",
        f"manifest {A.path} {json.dumps(manifest)}",
        "manifest registry.ollama.ai/library/broken/1 {",
        "manifest not/a/name of ours",
        "record " + json.dumps({"name": A.full, "recipe": D2, "digest": D1}),
    ]
    host = Models().process(lines)
    assert host.up and host.disk.free == 12345 and host.disk.blobs["sha256-aa"] == Blob(7, 4096)
    assert host.disk.lacking(A.key) == ["sha256:cc"] and host.digest(A) is None
    assert host.disk.lacking(ModelName.parse("broken:1").key) and host.records[A.key].recipe == D2
    assert host.loaded[A.key].expires.year == 2318
    assert not Models().process(["tags ", "ps ", "free 1"]).up


def test_times_of_go_are_read() -> None:
    assert moment("2025-01-01T00:00:00Z") == datetime(2025, 1, 1, tzinfo=UTC)
    assert moment("9999-12-31T23:59:59-08:00").year == 9999
    with pytest.raises(ValueError, match="not a time"):
        moment("soon")


def test_a_registrys_answers_are_read() -> None:
    raw = json.dumps({"layers": [{"digest": "sha256:aa", "size": 7}]}).encode()
    encoded = base64.b64encode(raw).decode()
    read = RegistryManifests().process([f"{A.key} 200 {encoded}", f"{B.key} 404 {encoded}", f"{C.key} 000"])
    assert read[A.key] == Served(200, hashlib.sha256(raw).hexdigest(), {"sha256:aa": 7})
    assert (read[B.key].status, read[C.key].status) == (404, 0)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("pull model manifest: file does not exist", "no such model"),
        ("pull model manifest: unauthorized: access denied", "wants a login"),
        ('pull model manifest: 429: {"errors":[]}', "run again later"),
        ("write /root/.ollama/x-partial: no space left on device", "make room"),
        ("max retries exceeded: unexpected EOF", "goes on from there"),
        ('Get "https://r/v2/": dial tcp: lookup r: no such host', "cannot reach the registry"),
    ],
)
def test_errors_of_ollama_get_their_cure(error: str, words: str) -> None:
    assert words in meaning(error) and meaning(error).startswith(error[:40])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return the content of a GGUF file."""
    return tinymodel.write(tmp_path_factory.mktemp("gguf") / "m.gguf").read_bytes()


@given(data=st.data())
def test_a_file_cut_at_any_byte_is_refused(
    model: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("cut") / "m.gguf"
    path.write_bytes(model[: data.draw(st.integers(0, len(model) - 1))])
    with pytest.raises(ModelFileError, match=r"cut short|no GGUF file"):
        modelfiles.check_gguf(path)


@given(noise=st.binary(min_size=4, max_size=200), at=st.integers(0, 20_000))
def test_a_broken_header_is_refused_or_read_but_never_hangs(
    model: bytes, tmp_path_factory: pytest.TempPathFactory, noise: bytes, at: int
) -> None:
    path = tmp_path_factory.mktemp("broken") / "m.gguf"
    path.write_bytes(model[:at] + noise + model[at + len(noise) :])
    try:
        modelfiles.check_gguf(path)
    except ModelFileError as error:
        assert str(path) in str(error)


def test_a_whole_file_is_taken_and_others_are_named(model: bytes, tmp_path: Path) -> None:
    whole = tmp_path / "m.gguf"
    whole.write_bytes(model)
    modelfiles.check_gguf(whole)
    with pytest.raises(ModelFileError, match="No such file"):
        modelfiles.check_gguf(tmp_path / "gone.gguf")
    tinymodel.write(tmp_path / "odd.gguf", architecture="qwen9")
    with pytest.raises(ModelFileError, match=r"which llama\.cpp does not know; did it mean qwen"):
        modelfiles.check_gguf(tmp_path / "odd.gguf")


def test_safetensors_are_whole_with_their_companions(tmp_path: Path) -> None:
    header = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    with pytest.raises(ModelFileError, match=r"has no config\.json"):
        modelfiles.check_safetensors(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    modelfiles.check_safetensors(tmp_path)
    assert {path.name for path in modelfiles.files_of(tmp_path)} == {
        "model.safetensors",
        "config.json",
        "tokenizer.json",
    }
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ModelFileError, match="cut short"):
        modelfiles.check_safetensors(tmp_path)


def test_checksums_are_remembered_until_the_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "m"
    path.write_bytes(b"one")
    assert modelfiles.sha256(path) == hashlib.sha256(b"one").hexdigest()
    monkeypatch.setattr(modelfiles.imagearchive, "sha256", lambda _: pytest.fail("read again"))
    assert modelfiles.sha256(path) == hashlib.sha256(b"one").hexdigest()
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path.write_bytes(b"other")
    assert modelfiles.sha256(path) == hashlib.sha256(b"other").hexdigest()
