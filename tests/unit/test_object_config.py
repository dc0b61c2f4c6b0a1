"""What an object store's configuration refuses, and that it never shows what may be a secret."""

from __future__ import annotations

import pytest

from siltstone.adapters.object_config import ObjectConfig
from siltstone.config import SiltstoneConfig
from siltstone.errors import ConfigInvalid

S3 = {"url": "s3://bucket/folder"}


def test_without_a_url_there_is_none():
    assert not SiltstoneConfig().objects.is_on
    assert ObjectConfig("file:///srv/memories").is_on


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"url": "bucket"}, "url: expected file:///folder"),
        ({"url": "s3://"}, "url: expected file:///folder"),
        ({"url": "file://folder"}, "three slashes"),
        ({"url": "s3://[bucket"}, "url: expected a URL"),
        ({"url": "s3://name:hunter2@bucket"}, "no credentials"),
        ({"url": "s3://bucket?secret=hunter2"}, "no credentials"),
        ({"url": "file:///srv", "endpoint": "http://127.0.0.1:9000"}, "endpoint: expected with an s3"),
        ({"access_key": "hunter2"}, "access_key: expected with an s3"),
        ({**S3, "endpoint": "127.0.0.1:9000"}, "endpoint: expected http"),
        ({**S3, "endpoint": "https://name:hunter2@127.0.0.1"}, "endpoint: expected http"),
        ({**S3, "access_key": "name"}, "its secret"),
        ({**S3, "secret_key_file": "file"}, "expected an access_key"),
        ({"min_bytes": 0}, "min_bytes"),
        ({"max_at_once": 0}, "max_at_once"),
        ({"keep_replaced_s": -1.0}, "keep_replaced_s"),
        ({"retry_budget_s": 0.0}, "retry_budget_s"),
        ({"put_within_s": 39.0}, "put_within_s: expected no less"),
    ],
)
def test_what_cannot_be_is_refused_and_no_secret_shown(changes, complaint):
    with pytest.raises(ConfigInvalid, match=complaint) as caught:
        ObjectConfig(**changes)
    assert "hunter2" not in str(caught.value)
