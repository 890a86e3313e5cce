"""The two dataset scripts, run for real on tiny made-up datasets and against a web server on 127.0.0.1."""
import hashlib
import http.server
import importlib.util
import io
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

DATA = Path(__file__).resolve().parent.parent / "data"
OMNIGLOT = DATA / "omniglot_resized" / "resize_images.py"
MINI = DATA / "miniImagenet" / "proc_images.py"


# ---------------------------------------------------------------- made-up data and small helpers

def run(script, *arguments):
    command = [sys.executable, script, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def assert_refused(result, *words):
    """Exit code 2 and one line on stderr, with these words in it."""
    assert result.returncode == 2, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr
    for word in words:
        assert word in result.stderr


def tree(folder):
    """Every file below a folder, hidden ones too, as {relative path: bytes}."""
    files = filter(Path.is_file, folder.rglob("*"))
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def pack(kind, source, archive):
    """All files of a folder as a zip or tar.gz archive."""
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            for name, data in tree(source).items():
                file.writestr(name, data)
    else:
        with tarfile.open(archive, "w:gz") as file:
            file.add(source, ".")
    return archive


def own_copy(script, folder):
    """The script in a data folder of its own, to see what it does without arguments."""
    copy = folder / "data" / script.parent.name / script.name
    copy.parent.mkdir(parents=True)
    shutil.copy(script, copy)
    shutil.copy(DATA / "prepare.py", folder / "data")
    return copy


def omniglot(folder):
    """Five drawings of random bits in folder/images_background and _evaluation; returns {path: pixels}."""
    random, pixels = np.random.default_rng(0), {}
    for name in ("Greek/character01/0001_01.png", "Greek/character01/0001_02.png",
                 "Latin/character01/0002_01.png", "Latin/character02/0003_01.png",
                 "Tengwar/character01/0965_01.png"):
        path = folder / ("images_evaluation" if "Tengwar" in name else "images_background") / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels[name] = random.random((105, 105)) < 0.5
        Image.fromarray(pixels[name]).save(path)
    return pixels


def flat_alphabets(folder):
    """The same without the subset folders, as the original wants them."""
    pixels = omniglot(folder)
    for subset in list(folder.glob("images_*")):
        for alphabet in subset.iterdir():
            alphabet.rename(folder / alphabet.name)
        subset.rmdir()
    return pixels


def assert_resized(dest, pixels):
    """dest holds these drawings and no other PNGs: one bit, each pixel that of the nearest source pixel."""
    assert {path.relative_to(dest).as_posix() for path in dest.rglob("*.png")} == set(pixels)
    nearest = ((np.arange(28) + 0.5) * 105 / 28).astype(int)
    for name, drawing in pixels.items():
        image = Image.open(dest / name)
        assert (image.format, image.mode, image.size) == ("PNG", "1", (28, 28))
        np.testing.assert_array_equal(np.array(image), drawing[nearest][:, nearest])


def photo(size, mode="RGB", seed=0, **options):
    channels = {"RGB": (3,), "L": (), "CMYK": (4,)}[mode]
    small = np.random.default_rng(seed).integers(0, 256, (5, 5, *channels), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(small, mode).resize(size).save(file, "JPEG", **options)
    return file.getvalue()


PHOTOS = {  # the second is 84x84, at a quality that encoding it again would change
    "train/n01532829/n0153282900000005.jpg": photo((120, 100), seed=1, icc_profile=b"a profile"),
    "train/n01532829/n0153282900000006.jpg": photo((84, 84), seed=2, quality=95),
    "val/n01855672/n0185567200000001.jpg": photo((90, 130), "L", seed=3),
    "test/n01930112/n0193011200000002.jpg": photo((84, 84), "CMYK", seed=4),
}


def mini(folder, form="images"):
    """The photos as "split" folders, or with the CSV files "flat" or in a folder "images"."""
    for name, data in PHOTOS.items():
        path = folder / {"split": name, "flat": Path(name).name, "images": f"images/{Path(name).name}"}[form]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    if form != "split":
        for split in ("train", "val", "test"):
            rows = [f"{Path(name).name},{name.split('/')[1]}" for name in PHOTOS if name.startswith(split)]
            (folder / f"{split}.csv").write_text("\n".join(["filename,label", *rows]) + "\n")
    return folder


def original_resize(data):
    """What the original's proc_images.py saves, of an image that is made RGB first."""
    file = io.BytesIO()
    image = Image.open(io.BytesIO(data))
    image = image if image.mode == "RGB" else image.convert("RGB")
    image.resize((84, 84), resample=Image.LANCZOS).save(file, "JPEG")
    return file.getvalue()


def assert_processed(dest):
    """dest/{train,val,test} hold the photos: as the original resizes them, or the same bytes."""
    found = {name: data for split in ("train", "val", "test") for name, data in tree(dest).items()
             if name.startswith(f"{split}/")}
    assert set(found) == set(PHOTOS)
    for number, (name, data) in enumerate(PHOTOS.items()):
        assert found[name] == (data if number == 1 else original_resize(data)), name


# ---------------------------------------------------------------- Omniglot: what it reads and writes

@pytest.mark.parametrize("form", ["subsets", "alphabets", "zip", "zips in a folder", "tar"])
def test_omniglot_forms(tmp_path, form):
    source, dest = tmp_path / "source", tmp_path / "dest"
    pixels = (flat_alphabets if form == "alphabets" else omniglot)(source)
    drawing = next(source.rglob("0001_01.png"))
    drawing.with_name("._0001_01.png").write_bytes(b"what a Mac puts into archives")
    before = tree(source)
    given = source
    if form in ("zip", "tar"):
        given = pack(form, source, tmp_path / "archive")
    elif form == "zips in a folder":
        given = tmp_path / "zips"
        given.mkdir()
        for subset in ("images_background", "images_evaluation"):
            folder = tmp_path / subset
            shutil.copytree(source / subset, folder / subset)
            pack("zip", folder, given / f"{subset}.zip")
    result = run(OMNIGLOT, f"--source={given}", f"--dest={dest}")
    assert result.returncode == 0, result.stderr
    assert_resized(dest, pixels)
    assert tree(source) == before
    assert "4 characters, 5 images" in result.stdout
    assert result.stderr.startswith("warning: all of Omniglot is 1,623 characters of 20 images")
    assert len(result.stderr.splitlines()) == 1  # no progress bar in a log file


@pytest.mark.parametrize("make", [omniglot, flat_alphabets])
def test_omniglot_without_arguments_works_in_place(tmp_path, make):
    script = own_copy(OMNIGLOT, tmp_path)
    pixels = make(script.parent)
    result = run(script)
    assert result.returncode == 0, result.stderr
    assert_resized(script.parent, pixels)
    folders = {path.name for path in script.parent.iterdir() if path.is_dir()}
    assert folders == {"Greek", "Latin", "Tengwar"}  # the training code takes each folder for an alphabet


def test_one_bit_result_is_what_the_original_gets_from_lanczos(tmp_path):
    pixels = omniglot(tmp_path / "source")
    run(OMNIGLOT, f"--source={tmp_path / 'source'}", f"--dest={tmp_path / 'dest'}")
    for name, drawing in pixels.items():
        lanczos = Image.fromarray(drawing).resize((28, 28), resample=Image.LANCZOS)
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / "dest" / name)), np.array(lanczos))


def test_omniglot_goes_on_after_a_break(tmp_path):
    source, dest = tmp_path / "source", tmp_path / "dest"
    pixels = omniglot(source)
    run(OMNIGLOT, f"--source={source}", f"--dest={dest}")
    kept, *broken = sorted(dest.rglob("*.png"))
    os.utime(kept, (1, 1))
    broken[0].unlink()
    broken[0].with_name(f".{broken[0].name}.tmp").write_bytes(b"half a file of a killed run")
    broken[1].write_bytes(b"")
    Image.new("1", (105, 105)).save(broken[2])  # a copy that has not been resized
    assert run(OMNIGLOT, f"--source={source}", f"--dest={dest}").returncode == 0
    assert_resized(dest, pixels)
    assert kept.stat().st_mtime == 1
    assert not list(dest.rglob(".*"))


def test_omniglot_complete_set_gives_no_warning(tmp_path, monkeypatch, capsys):
    script = load_omniglot(monkeypatch)
    pixels = omniglot(tmp_path)
    next(iter((tmp_path / "images_background").glob("Greek/*/0001_02.png"))).unlink()
    monkeypatch.setattr(script, "CHARACTERS", 4)
    monkeypatch.setattr(script, "DRAWERS", 1)
    script.main([f"--dest={tmp_path}"])
    assert "4 characters, 4 images" in capsys.readouterr().out
    del pixels["Greek/character01/0001_02.png"]
    assert_resized(tmp_path, pixels)
    shutil.rmtree(tmp_path / "Tengwar")
    script.main([f"--dest={tmp_path}"])
    assert "warning" in capsys.readouterr().err


# ---------------------------------------------------------------- Omniglot: the download

def load_omniglot(monkeypatch):
    """The script as a module, so that its table of archives can be replaced."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    spec = importlib.util.spec_from_file_location("resize_images", OMNIGLOT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data, wanted = self.server.files[self.path], self.headers.get("Range")
        self.server.requests.append((self.path, wanted))
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        end, self.server.break_at = self.server.break_at, None
        self.wfile.write(data[start:end])

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """(server, script as a module): two small archives on a server, and their MD5s in the script's table."""
    pixels = omniglot(tmp_path / "published")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.pixels, server.files, server.requests, server.ranges, server.break_at = pixels, {}, [], True, None
    script, md5s = load_omniglot(monkeypatch), {}
    for subset in ("images_background", "images_evaluation"):
        (tmp_path / subset).mkdir()
        (tmp_path / "published" / subset).rename(tmp_path / subset / subset)
        data = pack("zip", tmp_path / subset, tmp_path / f"{subset}.zip").read_bytes()
        server.files[f"/python/{subset}.zip"] = data
        md5s[f"{subset}.zip"] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(script, "ARCHIVES", md5s)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server.arguments = ["--download", f"--url=http://127.0.0.1:{server.server_port}/python"]
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server, script
    server.shutdown()
    server.server_close()


def assert_stops(script, arguments, capsys, *words):
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert len(error.splitlines()) == 1, error
    for word in words:
        assert word in error


def test_download(site, tmp_path):
    server, script = site
    arguments = [*server.arguments, f"--dest={tmp_path / 'dest'}"]
    script.main(arguments)
    assert_resized(tmp_path / "dest", server.pixels)
    assert server.requests == [(name, None) for name in server.files]
    script.main(arguments)
    assert len(server.requests) == 2  # nothing is fetched again


@pytest.mark.parametrize("ranges", [True, False])
def test_download_goes_on_after_a_break(site, tmp_path, capsys, ranges):
    server, script = site
    server.ranges, server.break_at = ranges, 100
    arguments = [*server.arguments, f"--dest={tmp_path / 'dest'}"]
    assert_stops(script, arguments, capsys, "images_background.zip", "broke off after 100 of", "run again")
    assert [path.name for path in (tmp_path / "dest").iterdir()] == ["images_background.zip.part"]
    script.main(arguments)
    assert server.requests[1] == ("/python/images_background.zip", "bytes=100-")
    assert_resized(tmp_path / "dest", server.pixels)
    assert not list((tmp_path / "dest").glob("*.part"))


@pytest.mark.parametrize(("left", "ranges"), [("whole", [None]), ("too long", ["bytes=99999-", None, None])])
def test_download_with_a_partial_file_that_is_not_partial(site, tmp_path, left, ranges):
    server, script = site
    data = server.files["/python/images_background.zip"] if left == "whole" else b"x" * 99999
    (tmp_path / "dest").mkdir()
    (tmp_path / "dest" / "images_background.zip.part").write_bytes(data)
    script.main([*server.arguments, f"--dest={tmp_path / 'dest'}"])
    assert_resized(tmp_path / "dest", server.pixels)
    assert [wanted for _, wanted in server.requests] == ranges


def test_download_refuses_a_wrong_md5(site, tmp_path, capsys):
    server, script = site
    server.files["/python/images_evaluation.zip"] += b"changed"
    arguments = [*server.arguments, f"--dest={tmp_path / 'dest'}"]
    expected = script.ARCHIVES["images_evaluation.zip"]
    assert_stops(script, arguments, capsys, "images_evaluation.zip", f"not {expected}")
    assert [path.name for path in (tmp_path / "dest").iterdir()] == ["images_background.zip"]


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "no-such-scheme"])
def test_download_without_network(tmp_path, monkeypatch, url):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    result = run(OMNIGLOT, "--download", f"--url={url}", f"--dest={tmp_path / 'dest'}")
    assert_refused(result, f"cannot fetch {url}/images_background.zip", "--source")


def test_published_md5s():
    text = OMNIGLOT.read_text()
    assert '"images_background.zip": "68d2efa1b9178cc56df9314c21c6e718"' in text
    assert '"images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811"' in text


# ---------------------------------------------------------------- bad archives and drawings

@pytest.mark.parametrize(("kind", "name"), [
    ("zip", "../Greek/character01/0001_01.png"),
    ("zip", "/tmp/character01/0001_01.png"),
    ("zip", "C:\\Greek/character01/0001_01.png"),
    ("tar", "../Greek/character01/0001_01.png"),
    ("tar", "..\\Greek/character01/0001_01.png"),
])
def test_unsafe_archive_members_are_refused(tmp_path, kind, name):
    drawing = io.BytesIO()
    Image.new("1", (105, 105)).save(drawing, "PNG")
    archive = tmp_path / "archive"
    with zipfile.ZipFile(archive, "w") if kind == "zip" else tarfile.open(archive, "w") as file:
        for member in ("Latin/character01/0002_01.png", name):
            if kind == "zip":
                file.writestr(member, drawing.getvalue())
            else:
                info = tarfile.TarInfo(member)
                info.size = len(drawing.getvalue())
                file.addfile(info, io.BytesIO(drawing.getvalue()))
    assert_refused(run(OMNIGLOT, f"--source={archive}", f"--dest={tmp_path / 'dest'}"), "unsafe path")
    assert list(tmp_path.rglob("*")) == [archive]


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_links_in_archives_are_refused(tmp_path, kind):
    archive, name = tmp_path / "archive", "Latin/character01/0002_01.png"
    if kind == "zip":
        info = zipfile.ZipInfo(name)
        info.external_attr = 0o120777 << 16
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(info, "/etc/passwd")
    else:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        with tarfile.open(archive, "w") as file:
            file.addfile(info)
    result = run(OMNIGLOT, f"--source={archive}", f"--dest={tmp_path / 'dest'}")
    assert_refused(result, "holds the link", name)


@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_half_an_archive_is_refused(tmp_path, kind):
    omniglot(tmp_path / "source")
    archive = pack(kind, tmp_path / "source", tmp_path / "archive")
    archive.write_bytes(archive.read_bytes()[:len(archive.read_bytes()) // 2])
    result = run(OMNIGLOT, f"--source={archive}", f"--dest={tmp_path / 'dest'}")
    assert_refused(result, str(archive), "complete?")


def test_bad_drawings_are_named(tmp_path):
    omniglot(tmp_path)
    bad = tmp_path / "images_evaluation/Tengwar/character01/0965_01.png"
    bad.write_bytes(bad.read_bytes()[:200])
    arguments = [f"--source={tmp_path}", f"--dest={tmp_path / 'dest'}"]
    assert_refused(run(OMNIGLOT, *arguments), f"cannot read the image {bad}")
    Image.new("L", (105, 105)).save(bad)
    assert_refused(run(OMNIGLOT, *arguments), f"{bad} is not a one-bit")


def test_omniglot_nothing_found(tmp_path):
    assert_refused(run(OMNIGLOT, f"--dest={tmp_path}"), f"no drawings in {tmp_path}", "--download")
    result = run(OMNIGLOT, f"--source={tmp_path / 'none'}", f"--dest={tmp_path}")
    assert_refused(result, "none does not exist")


def test_a_destination_that_cannot_be_written(tmp_path):
    omniglot(tmp_path)
    (tmp_path / "file").touch()
    result = run(OMNIGLOT, f"--source={tmp_path}", f"--dest={tmp_path / 'file'}")
    assert_refused(result, str(tmp_path / "file"))


def test_omniglot_does_not_mix_two_copies_of_an_alphabet(tmp_path):
    omniglot(tmp_path)
    (tmp_path / "Greek").mkdir()
    assert_refused(run(OMNIGLOT, f"--dest={tmp_path}"), "Greek", "remove one")


# ---------------------------------------------------------------- MiniImagenet

@pytest.mark.parametrize(("form", "kind"), [("flat", "folder"), ("images", "folder"), ("split", "folder"),
                                            ("images", "zip"), ("split", "tar"), ("flat", "tar")])
def test_mini_forms(tmp_path, form, kind):
    source, dest = mini(tmp_path / "source", form), tmp_path / "dest"
    before = tree(source)
    given = source if kind == "folder" else pack(kind, source, tmp_path / "archive")
    result = run(MINI, f"--source={given}", f"--dest={dest}")
    assert result.returncode == 0, result.stderr
    assert_processed(dest)
    assert tree(source) == before
    assert "classes x images: train 1 x 2, val 1 x 1, test 1 x 1" in result.stdout
    assert result.stderr == "warning: all of MiniImagenet is train 64 x 600, val 16 x 600, test 20 x 600\n"


@pytest.mark.parametrize("where", ["beside", "--csv"])
def test_mini_csv_files_elsewhere(tmp_path, where):
    source, folder = mini(tmp_path / "all") / "images", tmp_path / "all"
    arguments = [f"--source={source}", f"--dest={tmp_path / 'dest'}"]
    if where == "--csv":
        folder = tmp_path / "tables"
        folder.mkdir()
        for table in (tmp_path / "all").glob("*.csv"):
            table.rename(folder / table.name)
        assert_refused(run(MINI, *arguments), "train.csv", "--csv")
        arguments.append(f"--csv={folder}")
    assert run(MINI, *arguments).returncode == 0
    assert_processed(tmp_path / "dest")


def test_mini_without_arguments_works_beside_the_script_and_goes_on_after_a_break(tmp_path):
    script = own_copy(MINI, tmp_path)
    mini(script.parent)
    elsewhere = (script.parent / "images").rename(tmp_path / "another disk")
    (script.parent / "images").symlink_to(elsewhere)
    images = tree(elsewhere)
    assert run(script).returncode == 0
    assert_processed(script.parent)
    assert tree(elsewhere) == images

    kept, lost, broken, _ = (script.parent / name for name in PHOTOS)
    os.utime(kept, (1, 1))
    lost.unlink()
    lost.with_name(f".{lost.name}.tmp").write_bytes(b"half a file of a killed run")
    broken.write_bytes(b"")
    assert run(script).returncode == 0
    assert_processed(script.parent)  # also sees that the hidden file is gone
    assert kept.stat().st_mtime == 1

    (script.parent / "images").unlink()  # no longer needed
    assert run(script).returncode == 0
    assert_processed(script.parent)


def test_mini_missing_images_are_counted_and_the_first_is_named(tmp_path):
    mini(tmp_path)
    for name in list(PHOTOS)[1:3]:
        (tmp_path / "images" / Path(name).name).unlink()
    result = run(MINI, f"--source={tmp_path}", f"--dest={tmp_path / 'dest'}")
    assert_refused(result, "2 listed images", "n0153282900000006.jpg of train.csv")
    assert not (tmp_path / "dest").exists()


@pytest.mark.parametrize(("table", "words"), [
    (None, ["train.csv is not in", "--csv"]),
    ("", ["train.csv begins with ''"]),
    ("image,class\nn0153282900000005.jpg,n01532829\n", ["train.csv begins with 'image,class'"]),
    ("filename,label\nn0153282900000005.jpg\n", ["train.csv has the line 'n0153282900000005.jpg'"]),
    ("filename,label\nn0153282900000005.jpg,../../x\n", ["train.csv", "unsafe path"]),
])
def test_mini_bad_csv(tmp_path, table, words):
    mini(tmp_path)
    (tmp_path / "train.csv").unlink()
    if table is not None:
        (tmp_path / "train.csv").write_text(table)
    assert_refused(run(MINI, f"--source={tmp_path}", f"--dest={tmp_path / 'dest'}"), *words)
    assert not (tmp_path / "dest").exists()


def test_mini_unreadable_image_is_named(tmp_path):
    bad = mini(tmp_path) / "images" / "n0185567200000001.jpg"
    bad.write_bytes(bad.read_bytes()[:-200])
    result = run(MINI, f"--source={tmp_path}", f"--dest={tmp_path / 'dest'}")
    assert_refused(result, f"cannot read the image {bad}")


def test_mini_nothing_found(tmp_path):
    dest = f"--dest={tmp_path / 'dest'}"
    assert_refused(run(MINI, f"--source={tmp_path}", dest), f"no JPEG images in {tmp_path}", "--help")
    (tmp_path / "file").write_text("neither")
    assert_refused(run(MINI, f"--source={tmp_path / 'file'}", dest), "neither a folder nor")
