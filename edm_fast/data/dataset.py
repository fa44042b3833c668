"""Images or arrays of a folder or a zip archive, with optional labels from dataset.json, as arrays (C, H, W)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from edm_fast.data._labels import Labels, read_labels
from edm_fast.data._listing import Survey, fault, is_array_name, open_listing
from edm_fast.errors import UserError, UserOSError


@dataclass
class Details:
    """Where an item comes from: index among all files, whether it is flipped left-right, label as in the file."""

    raw_idx: int
    xflip: bool
    raw_label: np.ndarray


class ImageFolderDataset(torch.utils.data.Dataset):
    """Item i is (image uint8 (C, H, W), label float32 (label_dim,)); integer labels become one-hot vectors.

    max_size keeps a random subset (sorted), drawn from random_seed; xflip then appends a mirrored copy of every item.
    cache keeps decoded images in memory. use_pyspng is accepted for compatibility; Pillow decodes everything.
    arrays: .npy files of (C, H, W), such as latents, are images, too, and keep their type.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        resolution: int | None = None,
        max_size: int | None = None,
        use_labels: bool = False,
        xflip: bool = False,
        random_seed: int = 0,
        cache: bool = False,
        use_pyspng: bool = True,
        arrays: bool = False,
    ) -> None:
        self._source = open_listing(path, arrays=arrays)
        self.path = self._source.path
        self.name = os.path.splitext(os.path.basename(os.path.normpath(self.path)))[0]
        self.image_names = self._source.images
        self._wants_labels = use_labels
        self._all_labels: np.ndarray | None = None
        self._label_dim: int | None = None
        self._cache: dict[int, np.ndarray] | None = {} if cache else None

        self.image_shape = list(self._read(self.image_names[0]).shape)
        if resolution is not None and self.image_shape[1:] != [resolution, resolution]:
            height, width = self.image_shape[1:]
            raise UserOSError(f"images of {self.path} are {width}x{height}; expected {resolution}x{resolution}")

        chosen = np.arange(len(self.image_names), dtype=np.int64)
        if max_size is not None and max_size < chosen.size:
            np.random.RandomState(random_seed % (1 << 31)).shuffle(chosen)
            chosen = np.sort(chosen[:max_size])
        self._file_of_item = np.tile(chosen, 2) if xflip else chosen
        self._flipped = np.arange(self._file_of_item.size) >= chosen.size

    def __getstate__(self) -> dict[str, Any]:
        # readers of other processes decode and parse for themselves
        return {**self.__dict__, "_all_labels": None, "_cache": None if self._cache is None else {}}

    def __len__(self) -> int:
        return self._file_of_item.size

    def __getitem__(self, idx: int) -> tuple[np.ndarray, np.ndarray]:
        image = self._raw_image(int(self._file_of_item[idx]))
        if self._flipped[idx]:
            image = image[:, :, ::-1]
        return image.copy(), self.get_label(idx)

    def _read(self, name: str) -> np.ndarray:
        """(C, H, W)."""
        if is_array_name(name):
            return self._source.array(name)
        image = self._source.picture(name)
        return np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1))

    def _check_shape(self, name: str, shape: list[int]) -> None:
        if shape != self.image_shape:
            raise UserOSError(
                f"image {name} of {self.path} has shape {shape}; expected {self.image_shape} like the first"
            )

    def survey(self, halvings: int | None = None) -> str:
        """Look at the header of every image: the line about what was found. UserError if shapes differ.

        With `halvings`, also if a network that halves the side so often cannot be trained on them.
        """
        survey = Survey(self._source, [self.image_names[i] for i in np.unique(self._file_of_item)])
        for (width, height, channels), names in survey.shapes.items():
            self._check_shape(names[0], [channels, height, width])
            if halvings is not None and fault((width, height, channels), halvings):
                raise UserError(f"{self.path}: {fault((width, height, channels), halvings)}")
        return survey.line(self._labels().text() if self._wants_labels else "labels: not used")

    def _labels(self) -> Labels:
        return read_labels(self._source, self.image_names) if self._wants_labels else Labels("not wanted")

    def _raw_image(self, raw_idx: int) -> np.ndarray:
        if self._cache is not None and raw_idx in self._cache:
            return self._cache[raw_idx]
        name = self.image_names[raw_idx]
        image = self._read(name)
        self._check_shape(name, list(image.shape))
        if self._cache is not None:
            self._cache[raw_idx] = image
        return image

    @property
    def raw_labels(self) -> np.ndarray:
        """Labels of all files: int64 (n,) or float32 (n, dim); float32 (n, 0) without labels."""
        if self._all_labels is None:
            labels = self._labels()
            if labels.missing():
                raise UserOSError(f"{self.path}: {labels.missing()}; expected a label for each, or use_labels=False")
            kind = np.int64 if labels.values and isinstance(labels.values[0], int) else np.float32
            self._all_labels = np.array(labels.values or [[]] * len(self.image_names), dtype=kind)
        return self._all_labels

    def get_label(self, idx: int) -> np.ndarray:
        """Label of item idx: float32 (label_dim,)."""
        label = self.raw_labels[self._file_of_item[idx]]
        if label.dtype != np.int64:
            return label.copy()
        onehot = np.zeros([self.label_dim], dtype=np.float32)
        onehot[label] = 1
        return onehot

    def get_details(self, idx: int) -> Details:
        raw_idx = int(self._file_of_item[idx])
        return Details(raw_idx, bool(self._flipped[idx]), self.raw_labels[raw_idx].copy())

    @property
    def resolution(self) -> int:
        _, height, width = self.image_shape
        if height != width:
            raise UserError(f"images of {self.path} are {width}x{height}; expected squares")
        return height

    @property
    def num_channels(self) -> int:
        return self.image_shape[0]

    @property
    def label_shape(self) -> list[int]:
        return [self.label_dim]

    @property
    def label_dim(self) -> int:
        """Length of a label vector; for classes the largest of the whole file set plus one."""
        if self._label_dim is None:
            raw = self.raw_labels
            self._label_dim = int(raw.max()) + 1 if raw.dtype == np.int64 else raw.shape[1]
        return self._label_dim

    @property
    def has_labels(self) -> bool:
        return self.label_dim > 0

    @property
    def has_onehot_labels(self) -> bool:
        return self.has_labels and self.raw_labels.dtype == np.int64
