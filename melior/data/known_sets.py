"""data sets that melior knows: where they are found, what may be done with them, how their rows are read

`known:german-credit` stands wherever a source is read. A set is looked for in the folder that MELIOR_DATA names (or
shared/data beside a checkout), then in a package that ships it, then in MELIOR_HOME, where it is fetched once from its
public home. Sets with several parts take a split: `known:pneumonia-mnist@validation`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from melior.data import known_parts
from melior.data.formats.rows import Reading
from melior.data.known_parts import Adapt, Part
from melior.data.readers.choices import chosen_split
from melior.data.readers.rows import Line, Problem
from melior.data.readers.sources import KNOWN
from melior.errors import DataError

UCI = "https://archive.ics.uci.edu/static/public"
ZENODO = "https://zenodo.org/records/10519652/files"
POLYAI = "https://raw.githubusercontent.com/PolyAI-LDN/task-specific-datasets/master/banking_data"
OPEN_BANDIT = "https://raw.githubusercontent.com/st-tech/zr-obp/master/obp/dataset/obd"

HH_RLHF = "https://huggingface.co/datasets/Anthropic/hh-rlhf/resolve/main"
TASKMASTER = "https://raw.githubusercontent.com/google-research-datasets/Taskmaster/master/TM-4-2024/reward"
SEGMENT_PAIRS = (
    "https://raw.githubusercontent.com/jhejna/inverse-preference-learning/main/datasets/preference_transformer"
)

PACKED = 6  # files of Taskmaster's rewards that are kept compressed; the last is not
TASKMASTER_PARTS = tuple(
    Part(
        file=f"taskmaster_reward/tm4_reward_{number:02d}.json{'.gz' if number < PACKED else ''}",
        url=f"{TASKMASTER}/reward_{number:02d}.json",
    )
    for number in range(PACKED + 1)
)
BY_PEOPLE = (("human", "train"), ("human", "eval"))
SEGMENT_SETS = (  # name, folder, environment, how many pairs, who labelled which part
    ("hopper", "pref_mujoco_human", "hopper-medium-expert-v2", "num100", (*BY_PEOPLE, ("script", "train"))),
    ("walker2d", "pref_mujoco_human", "walker2d-medium-expert-v2", "num100", (*BY_PEOPLE, ("script", "train"))),
    ("can", "pref_robomimic_human", "Can", "num100_q50", BY_PEOPLE),
    ("lift", "pref_robomimic_human", "Lift", "num100_q50", BY_PEOPLE),
)

GERMAN = (
    "status_of_existing_checking_account",
    "duration_in_month",
    "credit_history",
    "purpose",
    "credit_amount",
    "savings_account_and_bonds",
    "present_employment_since",
    "installment_rate_in_percentage_of_disposable_income",
    "personal_status_and_sex",
    "other_debtors_or_guarantors",
    "present_residence_since",
    "property",
    "age_in_years",
    "other_installment_plans",
    "housing",
    "number_of_existing_credits_at_this_bank",
    "job",
    "number_of_people_being_liable_to_provide_maintenance_for",
    "telephone",
    "foreign_worker",
    "creditability",
)
MONTHS = ("0", "2", "3", "4", "5", "6")  # as the file counts them: there is no PAY_1
DEFAULT = (
    "ID", "LIMIT_BAL", "SEX", "EDUCATION", "MARRIAGE", "AGE", *(f"PAY_{month}" for month in MONTHS),
    *(f"BILL_AMT{month}" for month in range(1, 7)), *(f"PAY_AMT{month}" for month in range(1, 7)),
    "default.payment.next.month",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class KnownSet:
    """One data set."""

    name: str
    about: str
    licence: str
    cite: str
    parts: Mapping[str, Part]  # by split; "all" where there is one
    reading: Reading = field(default_factory=Reading)
    adapt: Adapt | None = None  # rows as they are published → rows of a format, from wherever; None leaves one out


SETS: tuple[KnownSet, ...] = (
    KnownSet(
        name="german-credit",
        about="credit scoring, 1,000 rows of 20 columns; a bad risk called good costs 5, a good one called bad 1",
        licence="CC BY 4.0",
        cite="Hofmann 1994, Statlog (German Credit Data), UCI, doi:10.24432/C5NC77",
        parts={
            "all": Part(
                file="german_credit/german.csv",
                url=f"{UCI}/144/statlog+german+credit+data.zip",
                member="german.data",
                sha256="e12d9d5def6845c0622634a1cd2ab87fa470668c4298f1ec52a4e403376a435b",
                names=GERMAN,
                delimiter=" ",
            )
        },
        reading=Reading(
            label="creditability",
            label_names={"1": "good", "2": "bad"},
            audit=("personal_status_and_sex", "foreign_worker"),
        ),
    ),
    KnownSet(
        name="uci-default",
        about="default of credit card clients, 30,000 rows of 23 columns, 22 % default",
        licence="CC BY 4.0",
        cite="Yeh & Lien 2009, doi:10.24432/C55S3H",
        parts={
            "all": Part(
                file="uci_default_credit/UCI_Credit_Card.csv.gz",
                url=f"{UCI}/350/data.csv",
                sha256="45bcf4df62ff2e237a74eb155cabfb4bbbc171219a0637daef44fdad07503dd0",
            )
        },
        reading=Reading(
            label="default.payment.next.month",
            label_names={"0": "paid", "1": "default"},
            drop=("ID",),
            audit=("SEX",),
            columns={"SEX": "text", "EDUCATION": "text", "MARRIAGE": "text"},
        ),
        adapt=known_parts.renamed_in_order("X1", DEFAULT),
    ),
    KnownSet(
        name="online-shoppers",
        about="12,330 visits of a shop, 17 columns; 15.5 % end with a purchase",
        licence="CC BY 4.0",
        cite="Sakar & Kastro 2018, doi:10.24432/C5F88Q",
        parts={
            "all": Part(
                file="online_shoppers/online_shoppers_intention.csv.gz",
                url=f"{UCI}/468/online+shoppers+purchasing+intention+dataset.zip",
                member="online_shoppers_intention.csv",
            )
        },
        reading=Reading(
            label="Revenue",
            label_names={"0": "leaves", "1": "buys"},
            columns=dict.fromkeys(
                ("OperatingSystems", "Browser", "Region", "TrafficType", "Weekend", "Month", "VisitorType"), "text"
            ),
        ),
        adapt=known_parts.with_digits("Weekend", "Revenue"),
    ),
    KnownSet(
        name="breast-cancer",
        about="569 tumours by 30 measures of cell nuclei, malignant or benign",
        licence="CC BY 4.0",
        cite="Wolberg, Mangasarian, Street & Street 1993, doi:10.24432/C5DW2B",
        parts={"all": Part(shipped="breast_cancer")},
        reading=Reading(label="diagnosis"),
    ),
    KnownSet(
        name="digits",
        about="1,797 handwritten digits, 8×8 pixels",
        licence="CC BY 4.0",
        cite="Alpaydin & Kaynak 1998, doi:10.24432/C50P49",
        parts={"all": Part(shipped="digits")},
    ),
    KnownSet(
        name="pneumonia-mnist",
        about="chest X-rays of children, 28×28 pixels, normal or pneumonia; not for clinical use",
        licence="CC BY 4.0",
        cite="Yang et al. 2023, MedMNIST v2, doi:10.1038/s41597-022-01721-8; Kermany et al. 2018",
        parts={
            split: Part(
                file="pneumoniamnist/pneumoniamnist_train_val.npz",
                url=f"{ZENODO}/pneumoniamnist.npz?download=1",
                split=arrays,
            )
            for split, arrays in (("train", "train"), ("validation", "val"))
        },
        reading=Reading(label_names={"0": "normal", "1": "pneumonia"}),
    ),
    KnownSet(
        name="banking77",
        about="10,003 messages to a bank, 77 intents",
        licence="CC BY 4.0",
        cite="Casanueva et al. 2020, arXiv:2003.04807",
        parts={
            "all": Part(
                file="banking77/train.csv.gz",
                url=f"{POLYAI}/train.csv",
                sha256="b06e26ac675513959a63135f11b94ea7786ed02da65db93a5650d8838cbc664b",
            )
        },
    ),
    KnownSet(
        name="open-bandit",
        about="2 × 10,000 impressions of a shop's banner with clicks and propensities, under two policies",
        licence="CC BY 4.0",
        cite="Saito et al. 2021, arXiv:2008.07146",
        parts={
            split: Part(
                file=f"obd_small/{name}_all.csv.gz",
                package="obp",
                inside=f"dataset/obd/{name}/all/all.csv",
                url=f"{OPEN_BANDIT}/{name}/all/all.csv",
            )
            for split, name in (("random", "random"), ("bernoulli-ts", "bts"))
        },
        adapt=known_parts.impression,
    ),
    KnownSet(
        name="open-bandit-items",
        about="the 80 items of open-bandit's banner, with four features",
        licence="CC BY 4.0",
        cite="Saito et al. 2021, arXiv:2008.07146",
        parts={
            "all": Part(
                file="obd_small/random_all_item_context.csv.gz",
                package="obp",
                inside="dataset/obd/random/all/item_context.csv",
                url=f"{OPEN_BANDIT}/random/all/item_context.csv",
            )
        },
        adapt=known_parts.without_first_column,
    ),
    KnownSet(
        name="hh-rlhf-harmless",
        about="1,154 pairs of answers (sample), of which people chose the less harmful; content can be offensive",
        licence="MIT",
        cite="Bai et al. 2022, arXiv:2204.05862",
        parts={
            "sample": Part(file="hh_rlhf_harmless/pairs.jsonl.gz"),
            "train": Part(file="hh_rlhf_harmless/train.jsonl.gz", url=f"{HH_RLHF}/harmless-base/train.jsonl.gz"),
        },
        adapt=known_parts.answered_pair,
    ),
    KnownSet(
        name="taskmaster-reward",
        about="3,228 turns of an agent that takes orders for coffee, called good (86 %) or bad by people",
        licence="CC BY 4.0",
        cite="PERL, Sidahmed et al. 2024, arXiv:2403.10704 (Taskmaster-4)",
        parts={"all": replace(TASKMASTER_PARTS[0], more=TASKMASTER_PARTS[1:])},
        adapt=known_parts.rated_turn,
    ),
    *(
        KnownSet(
            name=f"{short}-preferences",
            about=f"pairs of segments of {name} (observations and actions), which people, or returns, preferred",
            licence="MIT",
            cite="Kim et al. 2023, arXiv:2303.00957; Hejna and Sadigh 2023, arXiv:2305.15363",
            parts={
                f"{who}-{part}": Part(
                    file=f"{folder}/{name}_{count}_{who}_{part}.npz",
                    url=f"{SEGMENT_PAIRS}/{name}/{count}_{who}_{part}.npz",
                )
                for who, part in labelled
            },
        )
        for short, folder, name, count, labelled in SEGMENT_SETS
    ),
)
BY_NAME: Mapping[str, KnownSet] = {known.name: known for known in SETS}


def known_set(source: str) -> KnownSet:
    """The data set that `known:name`, with or without a split, names.

    Raises:
        DataError: naming the nearest, if there is none.
    """
    name = source.removeprefix(KNOWN).partition("@")[0]
    if name not in BY_NAME:
        near = difflib.get_close_matches(name, BY_NAME, n=1)
        hint = f"did you mean {KNOWN}{near[0]}? " if near else ""
        raise DataError(f"no data set is known as {name!r}; {hint}known are {', '.join(BY_NAME)}")
    return BY_NAME[name]


def known_rows(source: str) -> Iterator[Line | Problem]:
    """The rows of a known data set, in the columns of the format that its reading names.

    Raises:
        DataError: if it is on this machine nowhere and cannot be fetched, or several splits are there and none chosen.
    """
    known = known_set(source)
    split = chosen_split(list(known.parts), source.partition("@")[2], KNOWN + known.name)
    for line in known_parts.rows_of(known.parts[split], f"{known.name}-{split}"):
        if not isinstance(line, Line) or known.adapt is None:
            yield line
        elif (row := known.adapt(line.row)) is not None:
            yield replace(line, row=row)


def pull(source: str) -> dict[str, Path | None]:
    """Where each split of a known data set lies, fetched where it is nowhere; None is one that a package computes.

    Of a split in several files, the first.

    Raises:
        DataError: if one cannot be had.
    """
    known = known_set(source)
    return {split: known_parts.places_of(part, f"{known.name}-{split}")[0] for split, part in known.parts.items()}


def described(source: str) -> dict[str, Any]:
    """What a person should know of a data set before using it."""
    known = known_set(source)
    return {"name": KNOWN + known.name, "about": known.about, "licence": known.licence, "cite": known.cite}
