"""Laws of orbax on s3://: specifications have S3's driver where they had Google's, and all other places stay as they are."""

from __future__ import annotations

from types import SimpleNamespace

import fsspec
import pytest
from etils import epath
from orbax.checkpoint._src.path import gcs_utils
from orbax.checkpoint._src.serialization import tensorstore_utils

from jaxrl_ml import orbax_s3
from jaxrl_ml.types import UserError

SPEC, IS_GCS = tensorstore_utils.build_kvstore_tspec, gcs_utils.is_gcs_path
AMAZON, OTHER = "https://s3.eu-west-3.amazonaws.com", "http://127.0.0.1:9000"


@pytest.fixture
def enabled(monkeypatch):
    """Gives what tells where s3fs goes."""
    client = SimpleNamespace(endpoint_url=AMAZON, region_name="eu-west-3")
    monkeypatch.setattr(fsspec, "filesystem", lambda name: SimpleNamespace(s3=SimpleNamespace(meta=client)))
    monkeypatch.setattr(gcs_utils, "is_gcs_path", getattr(IS_GCS, "__wrapped__", IS_GCS))  # other tests may have done it
    monkeypatch.setattr(tensorstore_utils, "build_kvstore_tspec", getattr(SPEC, "__wrapped__", SPEC))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    for cached in (orbax_s3.enable, orbax_s3._driver):
        cached.cache_clear()
    orbax_s3.enable()
    yield client
    for cached in (orbax_s3.enable, orbax_s3._driver):
        cached.cache_clear()


def base(spec: dict) -> dict:
    return spec.get("base", spec)


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize(
    "directory", ["s3://bucket/run/1", "s3:/bucket/run/1"]
)  # the second is what normpath makes of the first
def test_a_folder_in_s3_is_specified_as_one_in_google_s_but_for_the_driver(enabled, ocdbt, directory):
    ours = tensorstore_utils.build_kvstore_tspec(directory, "params", use_ocdbt=ocdbt)
    theirs = tensorstore_utils.build_kvstore_tspec("gs://bucket/run/1", "params", use_ocdbt=ocdbt)
    assert base(ours).pop("driver") == "s3" and base(theirs).pop("driver") == "gcs"
    assert ours == theirs
    assert base(ours)["bucket"] == "bucket" and base(ours)["path"].startswith("run/1")


def test_a_store_that_is_not_amazon_s_is_found_where_s3fs_finds_it(enabled, monkeypatch):
    enabled.endpoint_url, enabled.region_name = OTHER, "auto"
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "any")
    spec = base(tensorstore_utils.build_kvstore_tspec("s3://bucket/run"))
    told = {"endpoint": OTHER, "aws_region": "auto", "aws_credentials": {"type": "environment"}}
    assert spec.items() >= told.items()


@pytest.mark.parametrize("url", ["https://s3.amazonaws.com", "https://s3.cn-north-1.amazonaws.com.cn", AMAZON])
def test_amazon_is_asked_for_the_region_of_the_bucket(enabled, url):
    enabled.endpoint_url = url
    assert base(tensorstore_utils.build_kvstore_tspec("s3://bucket/run")).keys() == {"driver", "bucket", "path"}


def test_parts_that_are_kept_elsewhere_stay_there():
    local = {"driver": "file", "path": "/tmp/x"}
    spec = {
        "driver": "ocdbt",
        "base": {"driver": "kvstack", "layers": [{"base": {"driver": "gcs", "path": "a"}}, {"base": local}]},
    }
    found = orbax_s3._with_s3(spec, {"driver": "s3"})
    assert found["base"]["layers"] == [{"base": {"driver": "s3", "path": "a"}}, {"base": local}]


def test_no_other_place_is_taken_for_a_bucket(enabled, tmp_path):
    assert gcs_utils.is_gcs_path(epath.Path("s3://bucket/x")) and gcs_utils.is_gcs_path(epath.Path("gs://bucket/x"))
    for place in (tmp_path, epath.Path("s3/x"), epath.Path("/s3x/y")):
        assert not gcs_utils.is_gcs_path(place)
    spec = getattr(SPEC, "__wrapped__", SPEC)
    for place in (str(tmp_path), "gs://bucket/x"):
        assert tensorstore_utils.build_kvstore_tspec(place) == spec(place)


def test_an_orbax_that_is_made_otherwise_is_told(enabled, monkeypatch):
    orbax_s3.enable.cache_clear()
    monkeypatch.delattr(tensorstore_utils, "build_kvstore_tspec")
    with pytest.raises(UserError, match=r"checkpoints in s3:// need orbax-checkpoint 0\.12, and [\d.]+ is installed"):
        orbax_s3.enable()
