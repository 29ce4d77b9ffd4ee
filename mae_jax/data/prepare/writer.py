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
import itertools
import json
import re
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from etils import epath
from tqdm import tqdm

from mae_jax.data import image_io, pipeline, sources
from mae_jax.data.prepare import shards
from mae_jax.data.sources.source import length_of
from mae_jax.output import files as output_files

_MAX_PER_SHARD = 2048  # pictures


class Manifest:
    """The file `SPLIT.json`: the source and the options of the shards of a split, and each shard.

    `content["files"]` has an entry for each shard that is written: what `shards.write` returns, and
    which pictures are "left_out".
    """

    def __init__(self, out: str | Path, split: str):
        self.out, self.split, self.name = Path(out).expanduser(), split, file_name(split)
        self.path, self.content = self.out / f"{self.name}.json", {}

    def load(self) -> None:
        try:
            content = json.loads(self.path.read_text("utf-8"))
            if not (isinstance(content["files"], dict) and isinstance(content["shards"], int)):
                raise TypeError
        except FileNotFoundError as error:
            why = f"there is no {str(self.path)!r}: nothing was prepared there"
            raise ValueError(why) from error
        except (ValueError, KeyError, TypeError) as error:
            why = f"{str(self.path)!r} is damaged: remove it to write everything again"
            raise ValueError(why) from error
        self.content = content

    def begin(self, identity: dict) -> None:
        """Load the manifest, which must have this source and these options, or start a new one."""
        self.out.mkdir(parents=True, exist_ok=True)
        for partial in self.out.glob(f".{self.name}-*.partial"):
            partial.unlink()
        if not self.path.exists():
            self.content = {**identity, "files": {}}
            return
        self.load()
        differ = [
            "other pictures" if key == "names_crc32" else f"{key} {old!r}, not {value!r}"
            for key, value in identity.items()
            if (old := self.content.get(key)) != value
        ]
        if differ:
            raise ValueError(
                f"{str(self.out)!r} has shards of {self.name!r} with {' and '.join(differ)}: use "
                "another --out, or remove it"
            )

    def add(self, file: str, entry: dict) -> None:
        self.content["files"] = dict(sorted((self.content["files"] | {file: entry}).items()))
        output_files.write_whole(epath.Path(self.path), json.dumps(self.content, indent=1) + "\n")

    def entries(self) -> dict[str, dict | None]:
        """Return the entry of each shard, or None for a shard that is not written."""
        count, done = self.content["shards"], self.content["files"]
        names = (f"{self.name}-{k:05d}-of-{count:05d}.array_record" for k in range(count))
        return {file: done.get(file) for file in names}

    @property
    def left_out(self) -> int:
        return sum(len(entry["left_out"]) for entry in self.content["files"].values())

    def summary(self) -> str:
        files, bad = self.content["files"], self.left_out
        size = sum((self.out / file).stat().st_size for file in files)
        records = sum(entry["records"] for entry in files.values())
        left_out = f" ({bad} left out, named in {self.path.name})" if bad else ""
        content = f"{records:,} pictures{left_out} in {len(files)} shard(s)"
        return f"{self.out}: {content}, {size / 1e9:.3g} GB"


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
      out: a folder, which other splits may share.
      shorter_side: the shorter side to which larger pictures are resized.
      quality: the JPEG quality of resized pictures.
      files: the number of shards; by default each has at most 2048 pictures.
      max_bad: the share of unreadable pictures that may be left out.

    Raises:
      ValueError: existing shards have another source or other options, too many pictures cannot be
        read, or shards are damaged; and as `sources.open_source`.
    """
    begin, source, manifest = time.time(), sources.open_source(spec, split), Manifest(out, split)
    count = length_of(source)
    files = files or -(-count // _MAX_PER_SHARD)
    if files > count:
        raise ValueError(f"--shards={files}, but there are only {count} pictures")
    names = "".join(f"{source.name(i)}\n" for i in range(count))
    manifest.begin(
        {
            "source": spec,
            "split": split,
            "pictures": count,
            "names_crc32": zlib.crc32(names.encode(errors="surrogateescape")),
            "shorter_side": shorter_side,
            "quality": quality if shorter_side else None,
            "shards": files,
        }
    )
    _write_classes(manifest.out, source.classes)
    edges = itertools.pairwise(count * k // files for k in range(files + 1))
    shares = zip(manifest.entries().items(), edges, strict=True)
    missing = {f: ends for (f, e), ends in shares if shards.find_damage(manifest.out / f, e)}
    if len(missing) < files:
        print(f"{files - len(missing)} of {files} shards exist", file=sys.stderr)
    summary = manifest.summary
    if missing:
        record = functools.partial(shards.record, source, side=shorter_side, quality=quality)
        _write_shards(manifest, missing, record, max_bad, threads)
        seconds = time.time() - begin
        summary = lambda: f"{check(out, split, threads)}; written in {seconds:,.0f} s"
    place = re.sub(r"([*?[])", r"[\1]", str(manifest.out.resolve()))
    spec = f"array_record:{place}/{{split}}-*.array_record"
    return f'{summary()}\ndata.train = dict(source="{spec}", split="{manifest.name}")'


def _write_shards(
    manifest: Manifest,
    missing: dict[str, tuple[int, int]],
    record: Callable[[int], tuple[bytes, str]],
    max_bad: float,
    threads: int,
) -> None:
    """Write the missing shards, of which the first picture and the end are given."""
    done = manifest.content["files"]
    manifest.content["files"] = {f: entry for f, entry in done.items() if f not in missing}
    total = sum(end - first for first, end in missing.values())
    with _progress_bar(total, "writing") as bar:
        for file, (first, end) in missing.items():
            allowed = int(max_bad * manifest.content["pictures"]) - manifest.left_out
            make, bad = lambda i, first=first: record(first + i), []
            results = pipeline.in_order(make, end - first, threads, 4 * threads)
            entry = shards.write(manifest.out / file, _readable(results, bad, allowed, bar))
            manifest.add(file, {**entry, "left_out": bad})


def _readable(
    results: Iterable[tuple[bytes, str]], bad: list[str], allowed: int, bar: tqdm
) -> Iterator[bytes]:
    """Yield the records, and append the reason for each missing record to `bad`."""
    for data, error in results:
        bar.update()
        if not error:
            yield data
            continue
        bad.append(error)
        bar.write(f"left out {error}", file=sys.stderr)
        if len(bad) > allowed:
            raise ValueError(
                f"too many pictures cannot be read ({len(bad)}, where {allowed} may be left out), "
                f"the last is {error}: repair or remove them, or raise --max-bad, the share that "
                "may be left out"
            )


def check(out: str | Path, split: str = "train", threads: int = 16) -> str:
    """Read all shards of a split back and return a summary; a ValueError names damaged shards."""
    manifest, wrong = Manifest(out, split), []
    manifest.load()
    entries = manifest.entries()
    written = {f: e for f, e in entries.items() if e and (manifest.out / f).is_file()}
    if missing := [file for file in entries if file not in written]:
        wrong.append(f"{len(missing)} of {len(entries)} shards are missing, such as {missing[0]}")
    total = sum(entry["records"] for entry in written.values())
    with _progress_bar(total, "checking") as bar:
        for file, entry in written.items():
            path = manifest.out / file
            why = shards.find_damage(path, entry) or shards.read_back(
                path, entry, threads, bar.update
            )
            if why:
                wrong.append(f"{file}: {why}")
    if wrong:
        raise ValueError(
            f"{str(manifest.out)!r}, split {split!r}: {'; '.join(wrong)}: the command that "
            "prepared it writes these again"
        )
    return f"{manifest.summary()}; every record reads back"


def _write_classes(out: Path, classes: tuple[str, ...]) -> None:
    path, text = out / "label.labels.txt", "".join(f"{name}\n" for name in classes)
    if not path.exists():
        if text:
            output_files.write_whole(epath.Path(path), text)
    elif path.read_text("utf-8") != text:
        raise ValueError(f"{str(path)!r} names other classes than the source: use another --out")


def file_name(split: str) -> str:
    """Return the file name of a split, also for a split of tfds like `train[:10%]`."""
    return re.sub(r"\W+", "_", split, flags=re.ASCII).strip("_")


def _progress_bar(total: int, what: str) -> tqdm:
    interval = 0.1 if sys.stderr.isatty() else 10  # seconds; a log file needs few lines
    return tqdm(total=total, unit=" pictures", desc=what, mininterval=interval)


def _between(low: float, high: float) -> Callable[[str], float]:
    def number(text: str):
        value = type(low)(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text} is not in {low:g} to {high:g}")
        return value

    return number


def parse(arguments: list[str]) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m mae_jax.data.prepare", description=__doc__, formatter_class=formatter
    )
    add, count = parser.add_argument, _between(1, 10**9)
    add("source", nargs="?", help="as in data.train.source, such as folder:PATH")
    add("--out", required=True, metavar="DIR", help="the folder of the shards")
    add("--split", default="train", help="as in data.train.split")
    add("--shorter-side", type=count, help="pixels; larger pictures are resized to it")
    add("--quality", type=_between(1, 100), default=95, help="of resized JPEGs, 1 to 100")
    add("--shards", dest="files", type=count, help="how many; by default one for 2048 pictures")
    add("--threads", type=count, default=16, help="how many threads read and resize")
    share = _between(0.0, 1.0)
    add("--max-bad", type=share, default=0.001, metavar="SHARE", help="of pictures left out")
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
        return
    except (ValueError, OSError, ImportError) as error:
        why, status = f"error: {error}", 2
    except KeyboardInterrupt:
        why = "stopped: the same command continues with the shards that are missing"
        status = 130
    print(why, file=sys.stderr, flush=True)
    sys.exit(status)
