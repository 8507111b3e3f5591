"""A new package's folder is there whole or not at all, and takes the place of nothing."""

import pytest

from archon_core.errors import ConfigError
from archon_scaffold.folder import check_free, new_folder, write_files


def test_files_appear_together_under_missing_parents(tmp_path):
    folder = tmp_path / "a" / "b"
    with new_folder(folder) as draft:
        write_files(draft, {"x/y.txt": "text"})
        assert not folder.exists()
    assert (folder / "x/y.txt").read_text() == "text"
    assert [path.name for path in folder.parent.iterdir()] == ["b"]
    assert folder.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [ConfigError("x"), KeyboardInterrupt()])
def test_what_is_broken_off_leaves_nothing(tmp_path, error):
    def broken_off():
        with new_folder(tmp_path / "b") as draft:
            write_files(draft, {"x.txt": "text"})
            raise error

    with pytest.raises(type(error)):
        broken_off()
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "file").write_text("kept")
    (tmp_path / "empty").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name in ("file", "empty", "dangling"):
        with pytest.raises(ConfigError, match="never overwritten; choose another name or --dir"):
            check_free(tmp_path / name)
    with pytest.raises(ConfigError, match=r"found the file .* in the path; choose another --dir"):
        check_free(tmp_path / "file" / "b")
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_that_appears_meanwhile_is_kept(tmp_path):
    def overtaken():
        with new_folder(tmp_path / "b"):
            (tmp_path / "b").mkdir()
            (tmp_path / "b" / "theirs").touch()

    with pytest.raises(ConfigError, match="never overwritten"):
        overtaken()
    assert (tmp_path / "b" / "theirs").exists()
