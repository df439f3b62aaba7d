import os

import pytest

from astra_accel.errors import ConfigurationError
from astra_accel.files import folders as writable
from astra_accel.files.folders import check_file_writable, check_writable, empty, remove


class TestCheckWritable:
    def test_nothing_is_left_of_the_try(self, tmp_path):
        check_writable(tmp_path / "a" / "b", "--output")
        check_file_writable(tmp_path / "c" / "page.html", "--output")

        assert list(tmp_path.iterdir()) == []

    def test_a_parent_that_is_a_file_is_named(self, tmp_path):
        (tmp_path / "file").touch()

        with pytest.raises(ConfigurationError, match=rf"^x is {tmp_path}/file/run, but {tmp_path}/file is a file"):
            check_writable(tmp_path / "file" / "run", "x")

    def test_a_full_disk_is_found_by_writing(self, tmp_path, monkeypatch):
        def full(_):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(writable.os, "fsync", full)

        with pytest.raises(ConfigurationError, match=r"x .* can't be written to: .*No space left"):
            check_writable(tmp_path, "x")

    @pytest.mark.skipif(os.name != "posix", reason="links")
    def test_a_part_that_is_a_link_to_nowhere_is_named(self, tmp_path):
        (tmp_path / "checkpoints").symlink_to(tmp_path / "purged")

        with pytest.raises(ConfigurationError, match=r"checkpoints is a link to .*purged, which is not there"):
            check_writable(tmp_path, "x", ("checkpoints",))

    def test_a_part_is_tried_too(self, tmp_path):
        (tmp_path / "checkpoints").symlink_to("/proc")

        with pytest.raises(ConfigurationError, match="can't be written to"):
            check_writable(tmp_path, "x", ("checkpoints",))

    def test_a_folder_is_no_file(self, tmp_path):
        with pytest.raises(ConfigurationError, match="is a folder; expected the name of a file"):
            check_file_writable(tmp_path, "--output")


class TestEmpty:
    def test_a_linked_part_keeps_its_link_and_what_is_not_the_run_s(self, tmp_path):
        scratch = tmp_path / "scratch"
        (scratch / "step-000001").mkdir(parents=True)
        (scratch / "of others").touch()
        link = tmp_path / "checkpoints"
        link.symlink_to(scratch)

        empty(link, ("step-*",))

        assert link.is_symlink()
        assert [path.name for path in link.iterdir()] == ["of others"]

    def test_a_link_inside_is_deleted_and_what_it_points_to_stays(self, tmp_path):
        kept = tmp_path / "kept"
        kept.mkdir()
        (tmp_path / "part").mkdir()
        (tmp_path / "part" / "step-000001").symlink_to(kept)

        remove(tmp_path / "part" / "step-000001")
        empty(tmp_path / "part")
        empty(tmp_path / "absent")

        assert sorted(path.name for path in tmp_path.iterdir()) == ["kept"]
