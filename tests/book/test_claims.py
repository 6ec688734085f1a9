"""The claims and their thresholds: fixed, complete, and amended only in the open."""

import datetime

import yaml

from tnlib.experiments.files import ROOT, sha256_of

FIXED = "d0863c025895617142664105b9195021c7d1008d6f6d0b69498fcaed62ac1b23"


def read(name):
    return yaml.safe_load((ROOT / "book" / name).read_text(encoding="utf-8"))


def test_the_claims_are_as_they_were_before_any_accuracy_was_computed():
    assert sha256_of(ROOT / "book" / "claims.yml") == FIXED, "never change claims.yml: amend it in claims-amendments.yml"


def test_each_claim_has_a_statistic_thresholds_and_a_control():
    claims = read("claims.yml")
    assert [claim["id"] for claim in claims["claims"]] == ["1a", "1b", "2", "3", "4", "5"]
    for claim in claims["claims"]:
        assert claim["thresholds"] and all(claim[part] for part in ("claim", "statistic", "control", "question"))
    assert claims["pilot"]


def test_amendments_are_dated_and_name_a_claim():
    known = {claim["id"] for claim in read("claims.yml")["claims"]}
    for amendment in read("claims-amendments.yml"):
        assert isinstance(amendment["date"], datetime.date) and amendment["claim"] in known
        assert amendment["change"] and amendment["reason"]
