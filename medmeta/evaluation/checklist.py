"""Which items of TRIPOD+AI and CLAIM the report answers, and where; the others are left to the authors.

Items are in our own words. TRIPOD+AI: Collins et al., BMJ 2024;385:e078378 (27 items, 52 with their parts).
CLAIM: Tejani et al., Radiology: Artificial Intelligence 2024;6(4):e240300 (44 items).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

OPEN = "not answered"


@dataclass(frozen=True)
class Item:
    """One item of a checklist.

    Args:
        number: as the checklist counts.
        asks: what it asks for.
        section: id of the section of the page that answers it; empty where it does not.
        note: what the section says of it, or who has to answer.
    """

    number: str
    asks: str
    section: str = ""
    note: str = ""


def items(list_: Mapping[str, tuple[str, str, str]], sections: Collection[str]) -> list[Item]:
    """The items of a checklist, those whose section or fact the page lacks as not answered.

    Args:
        list_: :data:`TRIPOD` or :data:`CLAIM`; ``made/Seed`` asks for the fact ``Seed`` in ``made``.
        sections: ids of the sections that the page has, and what it has in them.

    Example:
        >>> [i.note for i in items(CLAIM, {"made", "made/Versions"}) if i.number in ("23", "24", "29")]
        ['versions', 'not answered', 'not answered']
    """
    return [
        Item(number, asks, section.partition("/")[0], note)
        if section in sections
        else Item(number, asks, "", note if note and not section else OPEN)
        for number, (asks, section, note) in list_.items()
    ]


_AUTHORS = f"{OPEN}: for the authors"
_NONE = f"{OPEN}: medmeta does none"

TRIPOD: Mapping[str, tuple[str, str, str]] = {
    "1": ("a title that names model, population and outcome", "", _AUTHORS),
    "2": ("a structured abstract", "", _AUTHORS),
    "3a": ("the medical question and earlier models", "", _AUTHORS),
    "3b": ("whom it is for, and who uses it", "", _AUTHORS),
    "3c": ("known inequalities between groups of people", "", _AUTHORS),
    "4": ("what the study wants to find out", "answer", "whether few labels do for a type never trained on"),
    "5a": ("where the data come from", "", _AUTHORS),
    "5b": ("when they were collected", "", _AUTHORS),
    "6a": ("setting and centres", "", _AUTHORS),
    "6b": ("who was eligible", "", _AUTHORS),
    "6c": ("what treatment they had", "", _AUTHORS),
    "7": ("preprocessing and quality checks", "made/Preprocessing", "preprocessing"),
    "8a": ("the outcome and how it was assessed", "", _AUTHORS),
    "8b": ("who assessed it, with what training", "", _AUTHORS),
    "8c": ("whether they were blinded", "", _AUTHORS),
    "9a": ("how predictors were chosen", "made", "the scan, and the outline of a lesion to classify"),
    "9b": ("how they are defined and measured", "made/Preprocessing", "preprocessing"),
    "9c": ("who judged them, where judgement is needed", "", _AUTHORS),
    "10": ("how large the study is and why", "patients", "how many were judged; why, is for the authors"),
    "11": ("what was done where data are missing", "made", "a missing prediction counts the worst"),
    "12a": ("how data were split", "proof", "held-out type; those learnt from and judged apart"),
    "12b": ("how predictors enter the model", "made/Preprocessing", "preprocessing"),
    "12c": ("kind of model, how it was built and tuned", "made/Learner", "learner and outer steps"),
    "12d": ("differences between clusters such as hospitals", "", f"{OPEN}: medmeta knows no centres"),
    "12e": ("measures of performance and comparison", "figures", "with intervals, a row a method"),
    "12f": ("updates after the evaluation", "", _NONE),
    "12g": ("how predictions were made in the evaluation", "made", "learnt from drawn ones, others judged"),
    "13": ("what was done about rare classes", "", f"{OPEN}: see the documentation of each learner"),
    "14": ("what was done for fairness", "", _AUTHORS),
    "15": ("what the model puts out, and thresholds", "made", "a mask, or a probability of the type"),
    "16": ("differences between training and evaluation", "proof", "the tumour type"),
    "17": ("ethics approval", "", _AUTHORS),
    "18a": ("who paid", "", _AUTHORS),
    "18b": ("conflicts of interest", "", _AUTHORS),
    "18c": ("where the protocol can be read", "made/Episodes", "every episode, in manifest.json"),
    "18d": ("registration", "", _AUTHORS),
    "18e": ("whether data are shared", "", _AUTHORS),
    "18f": ("where the code is", "made/Versions", "medmeta and its version"),
    "19": ("what patients and the public had a say in", "", _AUTHORS),
    "20a": ("how many took part, with and without the outcome", "patients", "each patient judged"),
    "20b": ("who they were", "", _AUTHORS),
    "20c": ("how they differ from those trained on", "", _AUTHORS),
    "21": ("patients and outcomes in each analysis", "proof", "how many were trained on, how many judged"),
    "22": ("the model itself, so that others can use it", "", f"{OPEN}: export it with 'medmeta adapt'"),
    "23a": ("performance with intervals, also of subgroups", "figures", "intervals; no subgroups"),
    "23b": ("performance by cluster", "", f"{OPEN}: medmeta knows no centres"),
    "24": ("results of updating", "", _NONE),
    "25": ("what the results mean", "answer", "in words"),
    "26": ("limits", "answer/warnings", "warnings; the study's own are for the authors"),
    "27a": ("what to do with poor or missing input", "", f"{OPEN}: medmeta refuses it, with a reason"),
    "27b": ("what users must do and know", "", _AUTHORS),
    "27c": ("what comes next", "answer", "whether to label more"),
}  # fmt: skip

CLAIM: Mapping[str, tuple[str, str, str]] = {
    "1": ("a title that says AI and which kind", "", _AUTHORS),
    "2": ("a structured summary", "", _AUTHORS),
    "3": ("background and intended use", "", _AUTHORS),
    "4": ("aims and hypotheses", "answer", "whether few labels do for a type never trained on"),
    "5": ("prospective or retrospective", "", _AUTHORS),
    "6": ("the goal of the study", "answer", "which method to use with how many labels"),
    "7": ("data sources", "", _AUTHORS),
    "8": ("who was included and excluded", "", _AUTHORS),
    "9": ("preprocessing", "made/Preprocessing", "preprocessing"),
    "10": ("which part of the data was taken", "made/Preprocessing", "crops, or volumes or lesions whole"),
    "11": ("de-identification", "patients", "keys are salted hashes"),
    "12": ("missing data", "made", "a missing prediction counts the worst"),
    "13": ("how images were acquired", "", _AUTHORS),
    "14": ("what the reference standard is", "", _AUTHORS),
    "15": ("why that one", "", _AUTHORS),
    "16": ("where its annotations come from", "", _AUTHORS),
    "17": ("how the test set was annotated", "", _AUTHORS),
    "18": ("how far annotators agree", "", _AUTHORS),
    "19": ("how data were assigned to partitions", "proof", "by type and patient"),
    "20": ("at which level partitions are apart", "proof", "the patient, and the tumour type"),
    "21": ("intended size of the test set", "", _AUTHORS),
    "22": ("the model in detail", "made/Learner", "learner, steps; the network is in config.json"),
    "23": ("software and versions", "made/Versions", "versions"),
    "24": ("how parameters were initialised", "made/Seed", "seed; pre-training is in config.json"),
    "25": ("how it was trained", "made/Learner", "steps; all else is in the run's config.json"),
    "26": ("how the final model was chosen", "", f"{OPEN}: see the run's log"),
    "27": ("ensembles", "", _NONE),
    "28": ("measures of performance", "figures", "named above each table"),
    "29": ("significance and uncertainty", "figures", "intervals by patient and draw; p is in results.json"),
    "30": ("robustness", "figures", "intervals count in which supports were drawn; nothing else"),
    "31": ("explanations of single predictions", "", _NONE),
    "32": ("evaluation on internal data", "figures", "patients of the cohort who were not learnt from"),
    "33": ("testing on external data", "", f"{OPEN}: judge another centre's cohort with 'medmeta evaluate'"),
    "34": ("registration of a trial", "", _AUTHORS),
    "35": ("how many were included and excluded", "patients", "each patient judged"),
    "36": ("who the patients are, by partition", "", _AUTHORS),
    "37": ("performance and its uncertainty", "figures", "every table"),
    "38": ("diagnostic performance and its precision", "figures", "every table"),
    "39": ("what went wrong where it did", "failures", "worst cases, with the reason"),
    "40": ("limits", "answer/warnings", "warnings; the study's own are for the authors"),
    "41": ("what it means in practice", "answer", "which method to use, whether to label more"),
    "42": ("where the full protocol is", "made/Episodes", "every episode, in manifest.json"),
    "43": ("availability of software, model and data", "made/Versions", "medmeta and its version"),
    "44": ("who paid", "", _AUTHORS),
}  # fmt: skip
