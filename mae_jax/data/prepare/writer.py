"""Pack the pictures of any source into array_record shards, which training reads at random.

    python -m mae_jax.data.prepare folder:PATH --out=DIR
    python -m mae_jax.data.prepare tfds:imagenet2012 --out=DIR --split=train --shorter-side=256
    python -m mae_jax.data.prepare --check --out=DIR --split=train

Files are `DIR/SPLIT-00000-of-00010.array_record` and so on, in the order of the source (training
shuffles by itself), with `SPLIT.json`, which describes them, and `label.labels.txt`, which names
the classes. Encoded pictures are stored unchanged. With --shorter-side larger pictures become
upright JPEGs of that size (PNGs if they have transparency), as they are decoded: 8 bits, no EXIF,
no color profile. Arrays become PNGs. The same command again writes what is missing or damaged, and
the same source and options give the same bytes. Finally every record is read back.
"""

import argparse
import functools
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

from etils import epath
from tqdm import tqdm

from mae_jax.data import image_io, sources
from mae_jax.data.prepare import shards
from mae_jax.output import files as output_files

_MAX_PER_SHARD = 2048  # pictures


def prepare(
    spec: str,
    out: str | Path,
    split: str = "train",
    *,
    shorter_side: int | None = None,
    quality: int = 95,
    files: int | None = None,
    max_bad: float = 0.001,
    threads: int = 16,
) -> str:
    """Write the missing shards of `spec`, read all shards back, and return a summary.

    Args:
      spec, split: as for `sources.open_source`.
      out: a folder, which other splits may share.
      shorter_side: pictures whose shorter side is longer are resized to it.
      quality: the JPEG quality of resized pictures.
      files: the number of shards; by default each has at most 2048 pictures.
      max_bad: the share of unreadable pictures that may be left out.

    Raises:
      ValueError: existing shards have another source or other options, too many pictures cannot be
        read, or shards are damaged; and as `sources.open_source`.
      OSError: the disk cannot be read or written.
    """
    begin, source, out = time.time(), sources.open_source(spec, split), Path(out).expanduser()
    if not len(source):
        raise ValueError(f"data {spec!r} has no pictures in split {split!r}")
    count = len(source)
    files = files or -(-count // _MAX_PER_SHARD)
    if files > count:
        raise ValueError(f"--shards={files}, but there are only {count} pictures")
    name = file_name(split)
    identity = {
        "source": spec,
        "split": split,
        "pictures": count,
        "names_crc32": _crc32(f"{source.name(i)}\n" for i in range(count)),
        "shorter_side": shorter_side,
        "quality": quality if shorter_side else None,
        "shards": files,
    }
    manifest = _open_manifest(out, name, identity)
    _write_classes(out, source.classes)
    edges = [count * k // files for k in range(files + 1)]
    shares = {_shard(name, k, files): range(*edges[k : k + 2]) for k in range(files)}
    done = manifest["files"]
    missing = {f: share for f, share in shares.items() if shards.find_damage(out / f, done.get(f))}
    if len(missing) < files:
        print(f"{files - len(missing)} of {files} shards are there", file=sys.stderr)
    if missing:
        manifest["files"] = {f: entry for f, entry in done.items() if f not in missing}
        record = functools.partial(shards.record, source, side=shorter_side, quality=quality)
        _write_shards(out, name, manifest, missing, record, max_bad, threads)
        seconds = time.time() - begin
        said = f"{check(out, split, threads)}; written in {seconds:,.0f} s"
    else:
        said = _summary(out, name, manifest)
    place = re.sub(r"([*?[])", r"[\1]", str(out.resolve()))
    spec = f"array_record:{place}/{{split}}-*.array_record"
    return f'{said}\ndata.train = dict(source="{spec}", split="{name}")'


def _write_shards(
    out: Path,
    name: str,
    manifest: dict,
    shares: dict[str, range],
    record: Callable[[int], tuple[bytes, str]],
    max_bad: float,
    threads: int,
) -> None:
    """Write the records of the pictures of each shard in `shares`, updating the manifest."""
    with (
        ThreadPoolExecutor(threads) as pool,
        _progress_bar(sum(map(len, shares.values())), "writing") as bar,
    ):
        for file, pictures in shares.items():
            allowed = int(max_bad * manifest["pictures"]) - _left_out(manifest)
            bad, made = [], shards.in_order(pool, record, pictures, 4 * threads)
            try:
                entry = shards.write(out / file, _readable(made, bad, allowed, bar))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
            done = manifest["files"] | {file: {**entry, "left_out": bad}}
            manifest["files"] = dict(sorted(done.items()))
            _write_whole(out / f"{name}.json", json.dumps(manifest, indent=1) + "\n")


def check(out: str | Path, split: str = "train", threads: int = 16) -> str:
    """Read all shards of a split back, their bytes and every record, and return a summary.

    Raises:
      ValueError: shards are missing or damaged; with their names.
    """
    out, name = Path(out).expanduser(), file_name(split)
    manifest = _read_manifest(out, name)
    done, wrong = manifest["files"], []
    names = [_shard(name, k, manifest["shards"]) for k in range(manifest["shards"])]
    missing = [file for file in names if file not in done or not (out / file).is_file()]
    if missing:
        wrong.append(f"{len(missing)} of {len(names)} shards are missing, such as {missing[0]}")
    there = [file for file in names if file not in missing]
    total = sum(done[file]["records"] for file in there)
    with ThreadPoolExecutor(threads) as pool, _progress_bar(total, "checking") as bar:
        for file in there:
            path, entry = out / file, done[file]
            why = shards.find_damage(path, entry) or shards.read_back(path, entry, pool, bar.update)
            if why:
                wrong.append(f"{file}: {why}")
    if wrong:
        raise ValueError(
            f"{str(out)!r}, split {split!r}: {'; '.join(wrong)}: the command that prepared it "
            "writes these again"
        )
    return f"{_summary(out, name, manifest)}; every record reads back"


def _readable(
    made: Iterable[tuple[bytes, str]], bad: list[str], allowed: int, bar: tqdm
) -> Iterator[bytes]:
    """Yield the records, and append the reason for each missing record to `bad`."""
    for data, error in made:
        if error:
            bad.append(error)
            bar.write(f"left out {error}", file=sys.stderr)
            if len(bad) > allowed:
                raise ValueError(
                    f"too many pictures cannot be read, the last is {error}: repair or remove "
                    "them, or raise --max-bad, the share that may be left out"
                )
        else:
            yield data
        bar.update()


def _open_manifest(out: Path, name: str, identity: dict) -> dict:
    """Return the manifest of `out`, which must have the same identity, or a new manifest."""
    out.mkdir(parents=True, exist_ok=True)
    for partial in out.glob(f".{name}-*.partial"):
        partial.unlink()
    if not (out / f"{name}.json").exists():
        return {**identity, "files": {}}
    manifest = _read_manifest(out, name)
    differ = [
        "other pictures" if key == "names_crc32" else f"{key} {manifest.get(key)!r}, not {value!r}"
        for key, value in identity.items()
        if manifest.get(key) != value
    ]
    if differ:
        raise ValueError(
            f"{str(out)!r} has shards of {name!r} with {' and '.join(differ)}: use another --out, "
            "or remove it"
        )
    return manifest


def _read_manifest(out: Path, name: str) -> dict:
    path = out / f"{name}.json"
    try:
        manifest = json.loads(path.read_text("utf-8"))
        assert isinstance(manifest["files"], dict) and isinstance(manifest["shards"], int)
        return manifest
    except FileNotFoundError as error:
        raise ValueError(f"there is no {str(path)!r}: nothing was prepared there") from error
    except (ValueError, KeyError, TypeError, AssertionError) as error:
        raise ValueError(
            f"{str(path)!r} is damaged: remove it to write everything again"
        ) from error


def _write_classes(out: Path, classes: tuple[str, ...]) -> None:
    path = out / "label.labels.txt"
    text = "".join(f"{name}\n" for name in classes)
    there = path.read_text("utf-8") if path.exists() else None
    if there is not None and there != text:
        raise ValueError(f"{str(path)!r} names other classes than the source: use another --out")
    if text and there is None:
        _write_whole(path, text)


def _left_out(manifest: dict) -> int:
    return sum(len(entry["left_out"]) for entry in manifest["files"].values())


def _summary(out: Path, name: str, manifest: dict) -> str:
    files, bad = manifest["files"], _left_out(manifest)
    size = sum((out / file).stat().st_size for file in files)
    records = sum(entry["records"] for entry in files.values())
    left_out = f" ({bad} left out, named in {name}.json)" if bad else ""
    return f"{out}: {records:,} pictures{left_out} in {len(files)} shards, {size / 1e9:.3g} GB"


def file_name(split: str) -> str:
    """Return the file name of a split, also for a split of tfds like `train[:10%]`."""
    return re.sub(r"\W+", "_", split, flags=re.ASCII).strip("_")


def _shard(name: str, k: int, of: int) -> str:
    return f"{name}-{k:05d}-of-{of:05d}.array_record"


def _crc32(lines: Iterable[str]) -> int:
    crc = 0
    for line in lines:
        crc = zlib.crc32(line.encode(errors="surrogateescape"), crc)
    return crc


def _write_whole(path: Path, text: str) -> None:
    output_files.write_whole(epath.Path(path), text)


def _progress_bar(total: int, what: str) -> tqdm:
    interval = 0.1 if sys.stderr.isatty() else 10  # seconds; a log file needs few lines
    return tqdm(total=total, unit=" pictures", desc=what, mininterval=interval)


def parse(arguments: list[str]) -> argparse.Namespace:
    def number(low: float, high: float, kind):
        def read(text: str):
            if not low <= (value := kind(text)) <= high:
                raise argparse.ArgumentTypeError(f"{text} is not in {low:g} to {high:g}")
            return value

        read.__name__ = kind.__name__  # for argparse's message about a text that is no number
        return read

    count = number(1, 1e9, int)
    parser = argparse.ArgumentParser(
        prog="python -m mae_jax.data.prepare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("source", nargs="?", help="as in data.train.source, such as folder:PATH")
    add("--out", required=True, metavar="DIR", help="the folder of the shards")
    add("--split", default="train", help="as in data.train.split")
    add("--shorter-side", type=count, help="pixels; larger pictures are resized to it")
    add("--quality", type=number(1, 100, int), default=95, help="of resized JPEGs, 1 to 100")
    add("--shards", dest="files", type=count, help="how many; by default one for 2048 pictures")
    add("--threads", type=count, default=16, help="how many threads read and resize")
    share = number(0, 1, float)
    add(
        "--max-bad",
        type=share,
        default=0.001,
        metavar="SHARE",
        help="of pictures left out, at most",
    )
    add("--check", action="store_true", help="only read everything back")
    parsed = parser.parse_args(arguments)
    if not parsed.source and not parsed.check:
        parser.error("say what to prepare, such as folder:PATH")
    if parsed.source and parsed.check:
        parser.error("--check looks at --out alone: leave the source out")
    return parsed


def main() -> None:
    """Run the command line; a user's error ends in one sentence and exit status 2."""
    options = vars(parse(sys.argv[1:]))
    image_io.configure_libraries()
    try:
        if options.pop("check"):
            print(check(options["out"], options["split"], options["threads"]))
        else:
            print(prepare(options.pop("source"), options.pop("out"), **options))
    except (ValueError, OSError, ImportError) as error:
        _leave(f"error: {error}", 2)
    except KeyboardInterrupt:
        _leave("stopped: the same command continues with the shards that are missing", 130)


def _leave(why: str, status: int) -> NoReturn:
    print(why, file=sys.stderr, flush=True)
    sys.exit(status)
