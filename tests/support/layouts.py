"""Writers of one small data set in every layout that is read: eight pictures with two captions each."""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import datasets
from PIL import Image


NUMBER_OF_PICTURES = 8
CAPTIONS = {f"{number}.png": [f"red {number}, or so", f'a "picture" {number}'] for number in range(NUMBER_OF_PICTURES)}
ROWS = [{"image": name, "caption": caption} for name, captions in CAPTIONS.items() for caption in captions]


def picture(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (number * 6, 0, 0)).save(content, "PNG")
    return content.getvalue()


def write_pictures(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(CAPTIONS):
        (folder / name).write_bytes(picture(number))
    return folder


def write_json(file: Path, content) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))
    return file


def embedded_rows(start: int = 0, stop: int | None = None) -> datasets.Dataset:
    """Rows with the pictures in them, one a caption."""
    rows = [
        {"image": {"bytes": picture(int(row["image"][0])), "path": None}, "caption": row["caption"]} for row in ROWS
    ]
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_list(rows[start:stop], features=features)


def json_lines(folder: Path) -> Path:
    file = write_pictures(folder) / "pairs.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    return file


def json_list(folder: Path) -> Path:
    return write_json(write_pictures(folder) / "pairs.json", ROWS)


def json_lines_in_a_json_file_that_begin_with_images(folder: Path) -> Path:
    rows = [{"images": [], "image": name, "captions": captions} for name, captions in CAPTIONS.items()]
    file = write_pictures(folder) / "pairs.json"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return file


def comma_separated(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).to_csv(write_pictures(folder) / "pairs.csv")
    return folder / "pairs.csv"


def parquet_with_paths(folder: Path) -> Path:
    datasets.Dataset.from_list(ROWS).to_parquet(write_pictures(folder) / "pairs.parquet")
    return folder / "pairs.parquet"


def parquet_with_pictures(folder: Path) -> Path:
    folder.mkdir()
    embedded_rows().to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def parquet_with_bytes(folder: Path) -> Path:
    folder.mkdir()
    rows = [{"image": picture(int(row["image"][0])), "caption": row["caption"]} for row in ROWS]
    datasets.Dataset.from_list(rows).to_parquet(folder / "pairs.parquet")
    return folder / "pairs.parquet"


def numbered_parquet_files(folder: Path) -> Path:
    folder.mkdir()
    for number in range(3):
        rows = embedded_rows(6 * number, min(6 * number + 6, len(ROWS)))
        rows.to_parquet(folder / f"train-{number:05}-of-00003.parquet")
    return folder


def splits_by_other_names(folder: Path) -> Path:
    write_pictures(folder)
    for name, rows in (("train", ROWS[:8]), ("val", ROWS[8:12]), ("test", ROWS[12:])):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def image_folder(folder: Path) -> Path:
    write_pictures(folder / "images")
    rows = [{"file_name": f"images/{name}", "captions": captions} for name, captions in CAPTIONS.items()]
    (folder / "metadata.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    return folder


def saved_data_set(folder: Path) -> Path:
    datasets.DatasetDict({"train": embedded_rows(0, 12), "dev": embedded_rows(12)}).save_to_disk(folder)
    return folder


def folder_of_the_hub(folder: Path) -> Path:
    (folder / "data").mkdir(parents=True)
    embedded_rows(0, 8).to_parquet(folder / "data" / "train-00000-of-00002.parquet")
    embedded_rows(8, 12).to_parquet(folder / "data" / "train-00001-of-00002.parquet")
    embedded_rows(12).to_parquet(folder / "data" / "validation-00000-of-00001.parquet")
    return folder


def coco_content(names: list[str]) -> dict:
    images = [{"id": 100 + int(name[0]), "file_name": name, "width": 4} for name in names]
    annotations = [
        {"id": 10 * int(name[0]) + row, "image_id": 100 + int(name[0]), "caption": caption}
        for row in range(2)
        for name in names
        for caption in CAPTIONS[name][row : row + 1]
    ]
    return {"info": {"year": 2017}, "licenses": [], "images": images, "annotations": annotations}


def coco_file(folder: Path) -> Path:
    write_pictures(folder / "train2017")
    return write_json(folder / "annotations" / "captions_train2017.json", coco_content(list(CAPTIONS)))


def coco_folder(folder: Path) -> Path:
    names = list(CAPTIONS)
    for split, of_split in (("train", names[:5]), ("val", names[5:])):
        write_pictures(folder / f"{split}2017")
        write_json(folder / "annotations" / f"captions_{split}2017.json", coco_content(of_split))
        write_json(folder / "annotations" / f"instances_{split}2017.json", {"info": {}, "images": []})
    return folder


def karpathy_content(filepath: str | None = None) -> dict:
    splits = ["train", "restval", "train", "train", "val", "val", "test", "test"]
    images = []
    for (name, captions), split in zip(CAPTIONS.items(), splits, strict=True):
        sentences = [{"raw": caption, "tokens": caption.split()} for caption in captions]
        images.append({"filename": name, "split": split, "sentences": sentences, "imgid": int(name[0])})
        if filepath is not None:
            images[-1]["filepath"] = filepath
    return {"images": images, "dataset": "coco"}


def karpathy_coco(folder: Path) -> Path:
    write_pictures(folder / "val2014")
    return write_json(folder / "dataset_coco.json", karpathy_content("val2014"))


def karpathy_flickr(folder: Path) -> Path:
    write_pictures(folder / "Flicker8k_Dataset")
    write_json(folder / "dataset_flickr8k.json", karpathy_content())
    return folder


def flickr30k_bars(folder: Path) -> Path:
    write_pictures(folder / "flickr30k_images")
    lines = ["image_name| comment_number| comment"]
    for name, captions in CAPTIONS.items():
        lines += [f"{name}| {number}| {caption}" for number, caption in enumerate(captions)]
    lines[4] = lines[4].replace("1| ", "1   ")  # as one line of the file that is spread
    (folder / "results.csv").write_text("\n".join(lines))
    return folder


def flickr8k_commas(folder: Path) -> Path:
    write_pictures(folder / "Images")
    with (folder / "captions.txt").open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["image", "caption"])
        rows.writerows([row["image"], row["caption"]] for row in ROWS)
    return folder


def flickr8k_tokens(folder: Path) -> Path:
    write_pictures(folder / "Flicker8k_Dataset")
    lines = [f"{row['image']}#{number % 2}\t{row['caption']}" for number, row in enumerate(ROWS)]
    (folder / "Flickr8k.token.txt").write_text("\n".join(lines))
    return folder / "Flickr8k.token.txt"


def flickr30k_annotations(folder: Path) -> Path:
    write_pictures(folder / "flickr30k-images")
    with (folder / "flickr_annotations_30k.csv").open("w", newline="") as opened:
        rows = csv.writer(opened)
        rows.writerow(["raw", "sentids", "split", "filename", "img_id"])
        for name, captions in CAPTIONS.items():
            rows.writerow([json.dumps(captions), "[0, 1]", "val" if name[0] in "67" else "train", name, name[0]])
    return folder


def write_tar(file: Path, members: dict[str, bytes]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return file


def tar_members(names: list[str], described_by: str) -> dict[str, bytes]:
    members = {}
    for name in names:
        key = f"00{name[0]}"
        members[f"{key}.PNG"] = picture(int(name[0]))
        if described_by == "txt":
            members[f"{key}.txt"] = "\n".join(CAPTIONS[name]).encode()
        members[f"{key}.json"] = json.dumps({"caption": CAPTIONS[name] if described_by == "json" else None}).encode()
    return members


def one_tar(folder: Path) -> Path:
    return write_tar(folder / "00000.tar", tar_members(list(CAPTIONS), "txt"))


def unnamed_tars(folder: Path) -> Path:
    for number in range(4):
        write_tar(folder / f"{number:05}.tar", tar_members(list(CAPTIONS)[2 * number : 2 * number + 2], "json"))
    return folder


def tars_of_splits(folder: Path) -> Path:
    for name, names in (("cc-train-000", "012"), ("cc-train-001", "34"), ("cc-val-000", "5"), ("cc-test-000", "67")):
        write_tar(folder / f"{name}.tar", tar_members([f"{number}.png" for number in names], "txt"))
    return folder


def tars_in_folders(folder: Path) -> Path:
    for name, names in (("train/000", "0123"), ("val/000", "45"), ("test/000", "67")):
        write_tar(folder / f"{name}.tar", tar_members([f"{number}.png" for number in names], "json"))
    return folder


STREAMED: tuple[Callable[[Path], Path], ...] = (
    json_lines,
    json_list,
    parquet_with_paths,
    parquet_with_pictures,
    parquet_with_bytes,
    numbered_parquet_files,
    splits_by_other_names,
    image_folder,
    folder_of_the_hub,
    one_tar,
    unnamed_tars,
    tars_of_splits,
    tars_in_folders,
)
READ_AS_A_WHOLE: tuple[Callable[[Path], Path], ...] = (
    comma_separated,
    json_lines_in_a_json_file_that_begin_with_images,
    saved_data_set,
    coco_file,
    coco_folder,
    karpathy_coco,
    karpathy_flickr,
    flickr30k_bars,
    flickr8k_commas,
    flickr8k_tokens,
    flickr30k_annotations,
)
