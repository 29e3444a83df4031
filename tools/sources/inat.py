"""The iNaturalist competitions: `train_val2018.tar.gz` or its unpacked folder, with `train2018.json` or a list."""

from tools.sources.listed_images import Expected, ListedImages

# From the competitions' pages. The images of 2017 to 2019 come in one archive for both splits, those of 2021 in two.
INAT_EXPECTED = {
    "inat17": Expected(5_089, {"train": 579_184, "val": 95_986}),
    "inat18": Expected(8_142, {"train": 437_513, "val": 24_426}),
    "inat19": Expected(1_010, {"train": 265_213, "val": 3_030}),
    "inat21": Expected(10_000, {"train": 2_686_843, "val": 100_000}),
}

INAT = {
    name: ListedImages(name, f"iNaturalist 20{name[-2:]}: its archive or folder, with the JSON or a list", expected)
    for name, expected in INAT_EXPECTED.items()
}
