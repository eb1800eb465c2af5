"""Images in, batches out: sources, calibration draws, evaluation manifests, preprocessing."""

from ptq2themoon.data.csv_source import CsvSource
from ptq2themoon.data.draw import Report, draw_calibration, draw_order, list_evaluation
from ptq2themoon.data.few import FewImages, few_images
from ptq2themoon.data.image_files import Row, read_manifest, spread, write_images, write_manifest
from ptq2themoon.data.loading import Batches, CalibrationBatches, batches, calibration_batches
from ptq2themoon.data.opening import check_classes, open_source
from ptq2themoon.data.preprocessing import Preprocessing
from ptq2themoon.data.sources import ArraySource, FolderSource, Source
from ptq2themoon.data.torchvision_source import TorchvisionSource

__all__ = [
    "ArraySource",
    "Batches",
    "CalibrationBatches",
    "CsvSource",
    "FewImages",
    "FolderSource",
    "Preprocessing",
    "Report",
    "Row",
    "Source",
    "TorchvisionSource",
    "batches",
    "calibration_batches",
    "check_classes",
    "draw_calibration",
    "draw_order",
    "few_images",
    "list_evaluation",
    "open_source",
    "read_manifest",
    "spread",
    "write_images",
    "write_manifest",
]
