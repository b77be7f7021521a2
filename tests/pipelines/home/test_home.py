"""The user's folders: where they are, what they hold, and which file a name means."""

from __future__ import annotations

import itertools
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from pipelines import assets
from pipelines.errors import AdapterFileError, ModelError, SetupError
from pipelines.home import Home, answers
from pipelines.home.foreign_folders import import_paths
from pipelines.home.settings import Roots, Settings

from ..folders import ODD, dead, in_time


@pytest.fixture(autouse=True)
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two embedded models, each with a LoRA named fox; no home in the environment."""
    data = tmp_path / "shipped"
    for model in ("tiny-sd", "tiny-sdxl"):
        touch(data / "models" / model / "model_index.json", data / "loras" / model / "fox.safetensors")
    touch(data / "loras" / "tiny-sdxl" / "hat.safetensors")
    monkeypatch.setattr(assets, "root", lambda: data)
    monkeypatch.setattr(platformdirs, "user_data_dir", lambda name: str(tmp_path / "platform" / name))
    monkeypatch.delenv("LORA_STUDIO_HOME", raising=False)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.resolve(tmp_path / "home")


def touch(*files: Path) -> None:
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()


def names(entries: object) -> list[str]:
    return [entry.name for entry in entries]  # type: ignore[attr-defined]


def test_flag_before_environment_before_platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Home.resolve().path == tmp_path / "platform" / "lora-studio"
    monkeypatch.setenv("LORA_STUDIO_HOME", str(tmp_path / "env"))
    assert Home.resolve().path == tmp_path / "env"
    assert Home.resolve(tmp_path / "flag").path == tmp_path / "flag"


def test_nothing_is_created_by_reading(tmp_path: Path, home: Home) -> None:
    home.models(), home.loras(), home.vaes(), home.outputs, home.cache, home.database
    with pytest.raises(AdapterFileError):
        home.find_lora("nothing")
    assert not home.path.exists()
    assert home.made(home.outputs).is_dir()


def test_a_home_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    blocked = Home.resolve(tmp_path / "other")
    with pytest.raises(SetupError, match=r"cannot be created .* --home or LORA_STUDIO_HOME"):
        blocked.made(tmp_path / "file" / "outputs")


def test_config_is_read(home: Home, tmp_path: Path) -> None:
    touch(home.path / "config.toml")
    assert Home.resolve(home.path).settings == Settings()
    (home.path / "config.toml").write_text(
        'model = "mine"\ndevice = "cuda:1"\ndtype = "fp16"\nlora_vram = 2\n'
        f'[folders]\nloras = ["{tmp_path}/l", "near"]\n'
    )
    (tmp_path / "flag").mkdir()
    read = Home.resolve(home.path, lora_dirs=[tmp_path / "flag"])
    folders = (tmp_path / "l", home.path / "near")
    assert read.settings == Settings("mine", "cuda:1", "float16", Roots(loras=folders), lora_vram=2.0)
    assert read.roots.loras == (tmp_path / "flag", *folders)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('modle = "x"', "unknown key 'modle'; did you mean 'model'"),
        ("[folders]\nlora = []", "unknown key 'folders.lora'; did you mean 'loras'"),
        ("model = 1", "model is 1; it must be a text"),
        ('device = "gpu"', "device is 'gpu'; it must be auto, cpu"),
        ('dtype = "int8"', "dtype is 'int8'; it must be float32"),
        ('[folders]\nloras = "x"', "folders.loras is 'x'; it must be a list"),
        ('folders = "x"', "it must be a table"),
        ('lora_ram = "8"', "lora_ram is '8'; it must be a number of GiB"),
        ("lora_vram = -1", "lora_vram is -1; it must be a number of GiB"),
        ("model = ", "cannot be read"),
    ],
)
def test_a_faulty_config_is_refused(home: Home, text: str, message: str) -> None:
    touch(home.path / "config.toml")
    (home.path / "config.toml").write_text(text)
    with pytest.raises(SetupError, match=message):
        Home.resolve(home.path)


def test_a_given_folder_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"the LoRA folder .*away does not exist"):
        Home.resolve(tmp_path, lora_dirs=[tmp_path / "away"])


def test_adding_folders_keeps_the_rest_of_the_config(home: Home, tmp_path: Path) -> None:
    (tmp_path / 'odd "name"').mkdir()
    fresh = home.add_folders(Roots(loras=(tmp_path / 'odd "name"',)))
    assert fresh.roots.loras == fresh.settings.folders.loras == (tmp_path / 'odd "name"',)
    file = home.path / "config.toml"
    file.write_text('# mine\nmodel = "x"\n' + file.read_text())
    again = Home.resolve(home.path).add_folders(Roots(models=(tmp_path,), loras=(tmp_path / 'odd "name"',)))
    assert file.read_text().startswith('# mine\nmodel = "x"\n')
    assert file.read_text().count("[folders]") == 1
    assert again.settings == Settings("x", None, None, Roots((tmp_path,), (tmp_path / 'odd "name"',)))


def test_names_are_stems_and_as_long_as_needed(home: Home, tmp_path: Path) -> None:
    extra = tmp_path / "forge" / "Lora"
    touch(home.path / "loras" / "Red Hat.safetensors", home.path / "loras" / "notes.txt")
    touch(extra / "old" / "v1" / "cat.safetensors", extra / "new" / "v1" / "cat.safetensors")
    touch(extra / ".hidden" / "x.safetensors", extra / "dog.safetensors")
    home = Home.resolve(home.path, lora_dirs=[extra])
    assert names(home.loras()) == [
        *("tiny-sd/fox", "tiny-sdxl/fox", "hat", "Red Hat"),
        *("dog", "new/v1/cat", "old/v1/cat"),
    ]
    assert home.find_lora("red hat").path == home.path / "loras" / "Red Hat.safetensors"
    assert home.find_lora("Red Hat.safetensors").name == "Red Hat"
    assert home.find_lora("old/v1/CAT").path == extra / "old" / "v1" / "cat.safetensors"
    assert home.find_lora("Lora/dog").name == "dog"
    with pytest.raises(
        AdapterFileError, match="'v1/cat' is ambiguous; write one of 'new/v1/cat', 'old/v1/cat'"
    ):
        home.find_lora("v1/cat")
    with pytest.raises(AdapterFileError, match=r"unknown LoRA 'dogg': did you mean 'dog'\? .*--lora-dir"):
        home.find_lora("dogg")


def test_upper_and_lower_case_decide_only_between_two(home: Home) -> None:
    touch(home.path / "loras" / "A.safetensors", home.path / "loras" / "a.safetensors")
    assert home.find_lora("A").path.name == "A.safetensors"
    assert home.find_lora("a").path.name == "a.safetensors"
    assert len(names(home.loras())) == 5


def test_an_embedded_lora_belongs_to_its_model(home: Home) -> None:
    assert [entry.model for entry in home.loras()] == ["tiny-sd", "tiny-sdxl", "tiny-sdxl"]
    assert all(entry.embedded for entry in home.loras())
    with pytest.raises(
        AdapterFileError, match="'fox' is ambiguous; write one of 'tiny-sd/fox', 'tiny-sdxl/fox'"
    ):
        home.find_lora("fox")
    assert home.find_lora("fox", model="tiny-sdxl").name == "tiny-sdxl/fox"
    assert home.find_lora("tiny-sd/fox", model="tiny-sdxl").model == "tiny-sd"
    assert home.find_lora("tiny-sd/fox", paths=False).model == "tiny-sd"
    with pytest.raises(AdapterFileError):
        home.find_lora(str(home.loras()[0].path.with_suffix("")), paths=False)
    touch(home.path / "loras" / "fox.safetensors")
    assert home.find_lora("fox", model="tiny-sdxl").model == "tiny-sdxl"
    assert home.find_lora("fox", model="my model").path == home.path / "loras" / "fox.safetensors"


def test_names_do_not_lead_out_of_the_folders(home: Home, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    touch(outside / "secret.safetensors", home.path / "loras" / "in" / "own.safetensors")
    (home.path / "loras" / "link.safetensors").symlink_to(outside / "secret.safetensors")
    (home.path / "loras" / "away").symlink_to(outside)
    (home.path / "loras" / "alias.safetensors").symlink_to(home.path / "loras" / "in" / "own.safetensors")
    (home.path / "loras" / "in" / "circle").symlink_to(home.path / "loras")
    assert names(home.loras())[3:] == ["alias", "own"]
    for name in (
        "../outside/secret",
        "in/../../../outside/secret",
        "link",
        "away/secret",
        str(outside / "secret"),
    ):
        with pytest.raises(AdapterFileError):
            home.find_lora(name, paths=False)
    with pytest.raises(AdapterFileError):
        home.find_lora(str(outside / "secret.safetensors"), paths=False)
    assert home.find_lora(outside / "secret.safetensors").name == "secret"


def test_models_are_folders_and_files(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(
        home.path / "models" / "anime" / "model_index.json",
        home.path / "models" / "anime" / "unet" / "w.safetensors",
    )
    touch(home.path / "models" / "sd" / "Photo.safetensors", home.path / "models" / "sd" / "old.ckpt")
    assert names(home.models()) == ["tiny-sd", "tiny-sdxl", "anime", "Photo"]
    assert (found := home.find_model("PHOTO")) is not None
    assert found.path.name == "Photo.safetensors"
    assert (found := home.find_model("Tiny-SDXL")) is not None
    assert found.embedded
    assert home.find_model("someone/some-model") is None
    monkeypatch.chdir(tmp_path)
    touch(tmp_path / "someone" / "some-model" / "model_index.json")
    assert (found := home.find_model("someone/some-model")) is not None
    assert found.path == tmp_path / "someone" / "some-model"
    for name in ("anmie", "a/b/c", "no-such"):
        with pytest.raises(ModelError, match=f"unknown model '{name}'"):
            home.find_model(name)
    with pytest.raises(ModelError, match=r"away\.safetensors does not exist; check the path"):
        home.find_model("some/away.safetensors")
    with pytest.raises(ModelError, match="unknown VAE 'nice'"):
        home.find_vae("nice")


def test_thousands_of_files_are_listed_quickly(home: Home) -> None:
    for folder in range(20):
        (home.path / "loras" / str(folder)).mkdir(parents=True)
        for index in range(200):
            os.mknod(home.path / "loras" / str(folder) / f"lora {index} of {folder % 19}.safetensors")
    before = time.process_time()  # of this process: others may keep the machine busy
    found = home.find_lora("lora 7 of 7")
    assert found.path.parent.name == "7"
    assert len(home.loras()) == 3 + 20 * 200
    assert time.process_time() - before < 2


def test_comfyui_and_webui_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    comfy, webui = tmp_path / "ComfyUI", tmp_path / "webui"
    for folder in (comfy / "models" / "loras", comfy / "models" / "checkpoints", webui / "models" / "Lora"):
        folder.mkdir(parents=True)
    for folder in (webui / "models" / "Stable-diffusion", webui / "models" / "VAE", tmp_path / "more"):
        folder.mkdir(parents=True)
    assert import_paths(webui) == import_paths(webui / "models")
    assert import_paths(webui).vae == (webui / "models" / "VAE",)
    monkeypatch.setenv("ELSEWHERE", str(tmp_path))
    (comfy / "extra_model_paths.yaml").write_text(
        f"a111:\n  base_path: {webui}/\n  is_default: true\n  checkpoints: models/Stable-diffusion\n"
        "  loras: |\n    models/Lora\n    models/LyCORIS\n    $ELSEWHERE/more\n  vae: models/VAE\n  unet: models\n"
        "other:\n"
    )
    from_file = import_paths(comfy / "extra_model_paths.yaml")
    assert from_file == Roots(
        models=(webui / "models" / "Stable-diffusion",),
        loras=(webui / "models" / "Lora", tmp_path / "more"),
        vae=(webui / "models" / "VAE",),
    )
    assert import_paths(comfy).loras == (comfy / "models" / "loras", *from_file.loras)
    for path, message in (
        (tmp_path / "no", "does not exist"),
        (tmp_path / "more", "no model folders were found"),
    ):
        with pytest.raises(SetupError, match=message):
            import_paths(path)
    (comfy / "extra_model_paths.yaml").write_text("a: [")
    with pytest.raises(SetupError, match="cannot be read"):
        import_paths(comfy)


@pytest.mark.parametrize("make", ODD)
def test_what_is_no_file_is_in_no_list_and_stops_none(home: Home, make: Callable[[Path], None]) -> None:
    touch(home.path / "loras" / "sound.safetensors", home.path / "models" / "sound.safetensors")
    touch(home.path / "vae" / "sound.safetensors")
    for kind in ("loras", "models", "vae"):
        make(home.path / kind / "odd.safetensors")
        (home.path / kind / "folder").mkdir()
    make(home.path / "models" / "folder" / "model_index.json")
    make(home.path / "vae" / "folder" / "config.json")
    assert names(in_time(home.loras))[3:] == ["sound"]
    assert names(in_time(home.models))[2:] == ["sound"]
    assert names(in_time(home.vaes)) == ["sound"]
    for find, error in ((home.find_lora, AdapterFileError), (home.find_model, ModelError)):
        with pytest.raises(error):
            in_time(lambda find=find: find("odd"))


@pytest.mark.parametrize("make", ODD[:-2])
def test_a_config_that_is_no_file_is_refused(
    home: Home, make: Callable[[Path], None], tmp_path: Path
) -> None:
    home.path.mkdir()
    make(home.path / "config.toml")
    with pytest.raises(SetupError, match=r"config.toml cannot be read .*not a file"):
        in_time(lambda: Home.resolve(home.path))
    with pytest.raises(SetupError, match=r"config.toml cannot be read"):
        in_time(lambda: home.add_folders(Roots(loras=(tmp_path,))))
    make(tmp_path / "extra_model_paths.yaml")
    with pytest.raises(SetupError):
        in_time(lambda: import_paths(tmp_path / "extra_model_paths.yaml"))
    with pytest.raises(SetupError):
        in_time(lambda: import_paths(tmp_path))


def test_a_config_without_end_is_refused(home: Home, tmp_path: Path) -> None:
    touch(home.path / "config.toml")
    for text in ("model = " + "[" * 10_000, "# " + "x" * 2**20, "lora_ram = " + "9" * 5000):
        (home.path / "config.toml").write_text(text)
        with pytest.raises(SetupError):
            in_time(lambda: Home.resolve(home.path))
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]  # each names the one before ten times over
    lines += [f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]" for a, b in itertools.pairwise("abcdefghi")]
    paths = tmp_path / "paths.yaml"
    for text in ("\n".join([*lines, "s: {base_path: *i, loras: *i}"]), "[" * 10_000, "#" * 2**19):
        paths.write_text(text)
        with pytest.raises(SetupError):
            in_time(lambda: import_paths(paths))


def test_names_that_no_text_can_hold_are_left_out(home: Home) -> None:
    touch(home.path / "loras" / "sound.safetensors")
    (home.path / "loras" / os.fsdecode(b"\xff.safetensors")).touch()
    assert names(home.loras())[3:] == ["sound"]


def test_folders_may_lie_deeper_than_calls_may_nest(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(home.path / "loras" / "sound.safetensors")
    deep = home.path / "loras" / "/".join("d" * 1200)
    subprocess.run(["mkdir", "-p", deep], check=True)
    try:
        assert names(home.loras())[3:] == ["sound"]
    finally:
        subprocess.run(["rm", "-rf", home.path / "loras"], check=True)  # Python's own way nests calls


@pytest.mark.parametrize("name", ["a\0b", "~nobody-of-this-name/x", "x" * 5000, "x" * 10**6])
def test_a_name_that_can_be_none_is_not_found(home: Home, name: str) -> None:
    touch(home.path / "loras" / "sound.safetensors", home.path / "models" / "sound.safetensors")
    with pytest.raises(AdapterFileError):
        in_time(lambda: home.find_lora(name))
    with pytest.raises(ModelError):
        in_time(lambda: home.find_model(name))
    with pytest.raises(ModelError):
        in_time(lambda: home.find_vae(name))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PATIENCE", 0.4)


def test_a_folder_that_does_not_answer_is_left_out_told_and_listed_again_once_it_answers(
    home: Home, tmp_path: Path, impatient: None
) -> None:
    share = tmp_path / "share"
    touch(home.path / "loras" / "near.safetensors", share / "far.safetensors", share / "m.safetensors")
    home = Home.resolve(home.path, lora_dirs=[share], model_dirs=[share])
    assert names(home.loras())[3:] == ["near", "far", "m"]
    with dead(share) as held:
        assert names(in_time(home.loras))[3:] == ["near"]
        assert home.silent == (str(share),)
        began = time.monotonic()
        for _ in range(50):  # nobody waits for what is known not to answer, and no thread is spent on it
            assert names(home.loras())[3:] == ["near"]
            assert names(home.models())[2:] == []
        assert time.monotonic() - began < 5
        assert held.calls == 1
        assert home.find_lora("near").name == "near"
        with pytest.raises(
            AdapterFileError, match=rf"unknown LoRA 'far': .*{share} does not answer; try again"
        ):
            home.find_lora("far")
        with pytest.raises(ModelError, match=rf"The folder {share} does not answer; try again once it does"):
            home.find_model("m")
        with pytest.raises(SetupError, match="does not answer"):
            home.find_lora(share / "far.safetensors")
        with pytest.raises(SetupError, match="does not answer"):
            home.find_model(share / "m.safetensors")
        with pytest.raises(SetupError, match="does not answer"):
            import_paths(share)
        assert Home.resolve(home.path, lora_dirs=[share]).roots.loras == (share,)
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(home.silent), False)])
    assert names(home.loras())[3:] == ["near", "far", "m"]


def test_a_share_within_a_folder_takes_only_its_own_files_from_the_list(
    home: Home, tmp_path: Path, impatient: None
) -> None:
    touch(*(home.path / "loras" / folder / f"{folder}.safetensors" for folder in ("a", "share", "z")))
    touch(home.path / "models" / "share" / "model_index.json", home.path / "models" / "m.safetensors")
    with dead(home.path / "loras" / "share"), dead(home.path / "models" / "share"):
        assert names(in_time(home.loras))[3:] == ["a", "z"]
        assert names(in_time(home.loras))[3:] == ["a", "z"]
        assert names(in_time(home.models))[2:] == ["m"]
        assert set(home.silent) == {str(home.path / kind / "share") for kind in ("loras", "models")}


def test_a_link_into_what_does_not_answer_takes_only_itself_from_the_list(
    home: Home, tmp_path: Path, impatient: None
) -> None:
    share = tmp_path / "share"
    touch(home.path / "loras" / "near.safetensors", share / "far.safetensors")
    (home.path / "loras" / "linked.safetensors").symlink_to(share / "far.safetensors")
    (home.path / "loras" / "alias.safetensors").symlink_to("near.safetensors")
    (home.path / "loras" / "folder").symlink_to(share)
    for one in (home, Home.resolve(home.path, lora_dirs=[share])):
        with dead(share):
            assert names(in_time(one.loras))[3:] == ["alias", "near"]
    in_time(lambda: [time.sleep(0.01) for _ in iter(lambda: bool(answers.silent()), False)])
    assert {"linked", "alias", "near"} < set(names(one.loras()))
