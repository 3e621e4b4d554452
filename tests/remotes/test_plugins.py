"""Plug-ins: a broken plug-in is named in one line and breaks only its own scheme, and gets only its own credentials."""

import dataclasses
import logging
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from prefect_dist.ocispec import Descriptor, Digest, Reference, schemes
from prefect_dist.ocispec.errors import Corrupt, DistError, InvalidInput, Unavailable, Unsupported
from prefect_dist.ocispec.reference import expand
from prefect_dist.remotes import Credentials, PluginContext, PluginError, Registries, Remotes, Source, StaticCredentials, Target
from prefect_dist.remotes.remote import Ability
from prefect_dist.storage import ContentStore, open_store
from prefect_dist.transfer import content as transfer
from prefect_dist.transfer.events import ignore_event
from tests import images
from tests.fakes.registry import FakeRegistry
from tests.plugins import REMOTE, use_plugins, write_plugin
from tests.remotes.asking import SETTINGS, anonymous, check_message

PLUGIN = "plug-in broken:make (dist-broken 1.2)"
RAW = b'{"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": []}'
ROOT = Descriptor(media_type=images.OCI_INDEX, digest=Digest.of(RAW), size=len(RAW))
OTHER = Digest.of(b"other")
SECRETS = {
    name: Credentials(name, "secret")
    for name in ("pin:app", "pin:https://host.example/x", "host.example", "docker.io", "own:app", "oci:/srv/layout")
}
Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Install a plug-in for this process: a function with the parameters of `write_plugin` after the directory."""

    def write(code: str, **options: str) -> None:
        write_plugin(tmp_path / "site", code, **options)
        use_plugins(tmp_path / "site", monkeypatch)

    yield write
    monkeypatch.undo()
    schemes.find_plugins.cache_clear()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[ContentStore]:
    with open_store(str(tmp_path / "store")) as store:
        yield store


@pytest.fixture
def remotes(store: ContentStore) -> Iterator[Remotes]:
    credentials = StaticCredentials(SECRETS).get
    with Remotes(Registries(SETTINGS, credentials=credentials), credentials=credentials, open_store=lambda: store) as remotes:
        yield remotes


def pin(text: str = "pin:app") -> Reference:
    return Reference.parse(text)


def with_method(definition: str) -> str:
    """Return the plug-in with one method of its source replaced."""
    return f"{REMOTE}\n\nclass Changed(OneImage):\n{textwrap.indent(definition, '    ')}\n\nOneImageRemote.source = Changed\n"


# Loading.


BROKEN_MODULES = {
    "import error": ("import missing_module", "pin = broken:make", "cannot be loaded: ModuleNotFoundError: No module named"),
    "syntax error": ("def make(:", "pin = broken:make", "cannot be loaded: SyntaxError"),
    "exit": ("raise SystemExit(3)", "pin = broken:make", "cannot be loaded: SystemExit: 3"),
    "factory": ("def make(context): raise KeyError('x')", "pin = broken:make", "cannot be loaded: KeyError: 'x'"),
    "signature": ("def make(): pass", "pin = broken:make", "cannot be loaded: TypeError"),
    "attribute": ("", "pin = broken:make", "cannot be loaded: AttributeError"),
    "no attribute": ("", "pin = broken", "cannot be loaded: TypeError: 'module' object is not callable"),
    "type": ("def make(context): return {}", "pin = broken:make", "expected a prefect_dist.remotes.Remote, got dict"),
    "none": ("def make(context): pass", "pin = broken:make", "expected a prefect_dist.remotes.Remote, got None"),
}


@pytest.mark.parametrize("broken", BROKEN_MODULES.values(), ids=BROKEN_MODULES)
def test_a_plugin_that_cannot_be_loaded_is_named_and_breaks_only_its_scheme(
    install: Install, remotes: Remotes, registry: FakeRegistry, broken: tuple[str, str, str]
) -> None:
    code, points, expected = broken
    install(code, points=points)
    images.load(registry, "app", images.image(1), "v1")
    for _ in range(2):
        with pytest.raises(PluginError) as caught:
            remotes.open_source(pin())
        check_message(caught.value, points.partition("= ")[2], "(dist-broken 1.2) for the scheme pin: ", expected)
    assert remotes.resolve(Reference.parse(f"{registry.host}/app:v1")).descriptor.size > 0


def test_the_errors_of_a_factory_about_its_settings_are_unchanged(install: Install, remotes: Remotes) -> None:
    install("from prefect_dist.ocispec.errors import InvalidInput\ndef make(context): raise InvalidInput('DIST_PINS: not set')")
    with pytest.raises(InvalidInput, match=r"^DIST_PINS: not set$"):
        remotes.open_source(pin())


def test_two_packages_with_one_scheme_are_both_named(install: Install, remotes: Remotes) -> None:
    install(REMOTE)
    install(REMOTE, package="dist-second", version="3", points="pin = second:make\nown = second:make")
    with pytest.raises(PluginError) as caught:
        remotes.open_source(pin())
    check_message(caught.value, PLUGIN, "plug-in second:make (dist-second 3)", "scheme pin:", "uninstall all packages but one")
    assert remotes.resolve(Reference.parse("own:app")).descriptor == ROOT


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("oci", "the scheme oci: is built in"),
        ("store", "the scheme store: is built in"),
        ("Pin", "its scheme 'Pin' is invalid"),
        ("pin_x", "its scheme 'pin_x' is invalid"),
        ("1pin", "its scheme '1pin' is invalid"),
    ],
)
def test_a_plugin_with_a_wrong_scheme_is_ignored_with_a_warning(
    install: Install, remotes: Remotes, caplog: pytest.LogCaptureFixture, name: str, fault: str
) -> None:
    install("raise AssertionError('imported')", points=f"{name} = broken:make")
    with caplog.at_level(logging.WARNING, "prefect_dist"):
        assert schemes.find_plugins() == {}
        assert schemes.list_schemes() == list(schemes.BUILT_IN)
    [record] = caplog.records
    assert record.getMessage().startswith(f"{PLUGIN} is ignored: {fault}")
    assert type(remotes.find(Reference.parse("store:x"))).__name__ == "StoreRemote"


def test_an_unknown_scheme_lists_the_schemes_of_plugins(install: Install, remotes: Remotes) -> None:
    install(REMOTE)
    with pytest.raises(InvalidInput) as caught:
        Reference.parse("nix://x")
    check_message(caught.value, "unknown scheme nix://", "store:, pin:")
    with pytest.raises(InvalidInput) as caught:
        remotes.open_source(Reference("nix:x"))
    check_message(caught.value, "no remote serves the scheme nix:")


def test_texts_that_are_no_locators_of_plugins_read_no_entry_points(install: Install, registry: FakeRegistry) -> None:
    install("raise AssertionError('imported')")
    images.load(registry, "app", images.image(1), "v1")
    texts = [
        f"{registry.host}/app:v1",
        "host.example/x:1",
        "localhost:5000/x",
        "docker.io/library/redis@sha256:abc",
        "redis",
        "a/b:1",
    ]
    with Registries(SETTINGS, credentials=anonymous) as registries:
        remotes = Remotes(registries, credentials=anonymous, open_store=lambda: pytest.fail("the store was opened"))
        for text in texts:
            Reference.parse(expand(text))
        assert remotes.resolve(Reference.parse(texts[0])).descriptor.size > 0
        assert remotes.open_target(Reference.parse(texts[0])) is not None
        assert list(remotes.open_source(Reference.parse(texts[0])).tags()) == ["v1"]
        assert list(remotes.list_repositories(registry.host)) == ["app"]
    assert schemes.find_plugins.cache_info().misses == 0


def test_the_scheme_of_a_plugin_hides_an_image_of_docker_hub_with_the_same_name(install: Install) -> None:
    assert str(Reference.parse(expand("pin:7"))) == "docker.io/library/pin:7"
    install(REMOTE)
    assert Reference.parse(expand("pin:7")).scheme == "pin"
    for text in ("docker.io/library/pin:7", "docker://pin:7", "library/pin:7"):
        assert str(Reference.parse(expand(text))) == "docker.io/library/pin:7"


def test_a_plugin_that_hangs_while_it_is_loaded_delays_no_other_scheme(install: Install, remotes: Remotes) -> None:
    install("import threading\nwaiting, go = threading.Event(), threading.Event()\n" + REMOTE.replace(
        "def make(context):\n", "def make(context):\n    waiting.set()\n    assert go.wait(60)\n"
    ))  # fmt: skip
    with ThreadPoolExecutor(1) as threads:
        slow = threads.submit(remotes.resolve, pin())
        import broken  # type: ignore[import-not-found]

        assert broken.waiting.wait(60)
        assert remotes.open_source(Reference.parse("store:x")).exists()
        remotes.abort()
        broken.go.set()
        with pytest.raises(Unavailable, match="was aborted"):  # `abort` came while the remote was opened
            slow.result(60)


def test_a_factory_that_opens_sources_is_refused(install: Install, remotes: Remotes) -> None:
    install(REMOTE.replace("    return OneImageRemote()", "    return context.open_source(REF)").replace(
        "RAW = ", "from prefect_dist.ocispec import Reference\nREF = Reference('pin:other')\nRAW = ", 1
    ))  # fmt: skip
    with pytest.raises(InvalidInput, match="pin:other: a plug-in can open sources only after its remote was made"):
        remotes.open_source(pin())


def test_damaged_entry_points_of_a_package_are_named_and_the_other_packages_work(
    install: Install, remotes: Remotes, caplog: pytest.LogCaptureFixture
) -> None:
    install(REMOTE)
    install("", package="dist-damaged", points="nonsense")
    with caplog.at_level(logging.WARNING, "prefect_dist"):
        assert remotes.resolve(pin()).descriptor == ROOT
        assert str(Reference.parse(expand("redis:7"))) == "docker.io/library/redis:7"
    [record] = caplog.records
    assert record.getMessage().startswith("dist-damaged: the entry points of the package are ignored: ")


# Results.


FAULTS = {
    "foreign error": (
        "def resolve(self, reference, *, media_type=None):\n    raise KeyError('name')",
        "resolve failed: KeyError: 'name'",
    ),
    "no descriptor": ("def resolve(self, reference, *, media_type=None):\n    pass", "resolve: expected Descriptor, got None"),
    "dict": ("def resolve(self, reference, *, media_type=None):\n    return {}", "resolve: expected Descriptor, got dict"),
    "endless recursion": (
        "def resolve(self, reference, *, media_type=None):\n    return self.resolve(reference)",
        "resolve failed: RecursionError",
    ),
    "text": ("def fetch(self, descriptor, *, offset=0):\n    yield 'text'", "fetch: expected bytes, got str"),
    "no iterator": ("def fetch(self, descriptor, *, offset=0):\n    return None", "fetch failed: TypeError"),
    "foreign error of fetch": (
        "def fetch(self, descriptor, *, offset=0):\n    yield RAW[:3]\n    raise OSError('a\\nb\\x1b[31m')",
        "fetch failed: OSError: a b[31m",
    ),
}


@pytest.mark.parametrize(("method", "expected"), FAULTS.values(), ids=FAULTS)
def test_a_wrong_result_or_error_of_a_plugin_is_named_in_one_line(
    install: Install, remotes: Remotes, store: ContentStore, method: str, expected: str
) -> None:
    install(with_method(method))
    with pytest.raises(PluginError) as caught:
        fetch_root(remotes, store)
    check_message(caught.value, f"{PLUGIN} for the scheme pin", expected)
    assert list(store.walk()) == []


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ("[RAW, b'x']", f"expected {len(RAW)} bytes, {PLUGIN} for the scheme pin sent more"),
        ("[RAW[:5]]", f"expected {len(RAW)} bytes, {PLUGIN} for the scheme pin sent 5"),
        ("[]", f"expected {len(RAW)} bytes, {PLUGIN} for the scheme pin sent 0"),
        ("__import__('itertools').repeat(RAW)", "sent more"),
        ("[RAW.replace(b'2', b'3')]", "expected sha256:"),
    ],
)
def test_wrong_bytes_of_a_plugin_never_become_visible(
    install: Install, remotes: Remotes, store: ContentStore, pieces: str, expected: str
) -> None:
    install(with_method(f"def fetch(self, descriptor, *, offset=0):\n    return iter({pieces})"))
    with pytest.raises(Corrupt) as caught:
        fetch_root(remotes, store)
    check_message(caught.value, expected)
    assert list(store.walk()) == []


def fetch_root(remotes: Remotes, store: ContentStore) -> None:
    found = remotes.resolve(pin())
    transfer.fetch(store, found.fetcher, found.descriptor, notify=ignore_event, pause=time.sleep)


def test_a_good_plugin_needs_only_resolve_and_fetch(install: Install, remotes: Remotes, store: ContentStore) -> None:
    install(REMOTE)
    found = remotes.resolve(pin())
    assert (found.name, found.descriptor) == ("pin:app", ROOT)
    fetch_root(remotes, store)
    assert store.manifest(ROOT) == RAW
    assert found.fetcher.download(pin()).data == RAW
    assert found.fetcher.exists()
    assert not found.fetcher.has_referrers_api
    found.fetcher.distrust(ROOT)


def test_a_digest_in_the_reference_wins_over_a_plugin(install: Install, remotes: Remotes) -> None:
    install(REMOTE)
    assert remotes.resolve(pin(f"pin:app@{ROOT.digest}")).descriptor == ROOT
    with pytest.raises(PluginError) as caught:
        remotes.resolve(pin(f"pin:app@{OTHER}"))
    check_message(caught.value, PLUGIN, f"expected {OTHER}, the digest in the reference, got {ROOT.digest}")


def test_a_manifest_above_the_limit_is_refused(install: Install, remotes: Remotes) -> None:
    install(with_method("def resolve(self, reference, **_):\n    return __import__('dataclasses').replace(ROOT, size=1 << 40)"))
    with pytest.raises(Unsupported, match=r"pin:app: expected a manifest of at most \d+ bytes, got 1099511627776"):
        remotes.resolve(pin())


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "GeneratorExit", "SystemExit"])
def test_an_interrupt_passes(install: Install, remotes: Remotes, error: str) -> None:
    install(with_method(f"def resolve(self, reference, *, media_type=None):\n    raise {error}"))
    with pytest.raises(BaseException) as caught:  # noqa: PT011 - the three have no other common class
        remotes.resolve(pin())
    assert type(caught.value).__name__ == error


def test_the_errors_of_the_interface_pass_unchanged(install: Install, remotes: Remotes) -> None:
    install("from prefect_dist.ocispec.errors import NotFound\n" + with_method(
        "def resolve(self, reference, *, media_type=None):\n    raise NotFound('no such pin', subject=reference)"
    ))  # fmt: skip
    with pytest.raises(DistError, match=r"^pin:app: no such pin$") as caught:
        remotes.resolve(pin())
    assert type(caught.value).__name__ == "NotFound"


# Cancellation.


def test_abort_ends_a_transfer_that_waits_until_the_abort(install: Install, remotes: Remotes) -> None:
    install("import threading\nGO = threading.Event()\nOneImageStarted = threading.Event()\n" + with_method(
        "def fetch(self, descriptor, *, offset=0):\n"
        "    OneImageStarted.set()\n    assert GO.wait(60)\n    raise ConnectionError('closed by abort')"
    ) + "\nOneImageRemote.abort = lambda self: GO.set()\n")  # fmt: skip
    source = remotes.open_source(pin())
    import broken

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(lambda: list(source.fetch(ROOT)))
        assert broken.OneImageStarted.wait(60)
        remotes.abort()
        with pytest.raises(Unavailable, match="fetch was aborted") as caught:
            running.result(60)
    check_message(caught.value, PLUGIN)
    for use in (lambda: list(source.fetch(ROOT)), lambda: source.resolve(pin()), lambda: remotes.open_source(pin())):
        with pytest.raises(Unavailable, match="was aborted"):
            use()


def test_abort_ends_an_endless_transfer_of_a_plugin_without_abort(install: Install, remotes: Remotes) -> None:
    install(with_method("def fetch(self, descriptor, *, offset=0):\n    while True:\n        yield b''"))
    source = remotes.open_source(pin())
    started = threading.Event()

    def read() -> None:
        for _ in source.fetch(ROOT):
            started.set()

    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(read)
        assert started.wait(60)
        remotes.abort()
        with pytest.raises(Unavailable, match="fetch was aborted"):
            running.result(60)


def test_an_error_of_abort_or_close_is_logged_and_the_other_remotes_are_aborted(
    install: Install, remotes: Remotes, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    install(REMOTE + "\ndef fail(self):\n    raise OSError('no')\nOneImageRemote.abort = OneImageRemote.close = fail\n")
    remotes.open_source(pin())
    with caplog.at_level(logging.WARNING, "prefect_dist"):
        remotes.abort()
        with pytest.raises(Unavailable):
            remotes.resolve(Reference.parse(f"{registry.host}/app:v1"))
        remotes.close()
    assert [record.getMessage() for record in caplog.records] == [
        f"{PLUGIN} for the scheme pin: {name} failed: OSError: no" for name in ("abort", "close")
    ]


# Abilities.


USES: dict[str, tuple[Callable[[Remotes], object], str]] = {
    "tags": (lambda remotes: list(remotes.open_source(pin()).tags()), "pin:app: the remote pin: cannot list tags"),
    "referrers": (
        lambda remotes: list(remotes.open_source(pin()).referrers(ROOT)),
        "pin:app: the remote pin: cannot list referrers",
    ),
    "signatures": (
        lambda remotes: list(remotes.open_source(pin()).signatures(ROOT)),
        "pin:app: the remote pin: cannot list referrers",
    ),
    "repositories": (
        lambda remotes: list(remotes.list_repositories("pin:app")),
        "pin:app: the remote pin: cannot list repositories",
    ),
    "push": (lambda remotes: remotes.open_target(pin()), "pin:app: the remote pin: is read-only"),
}
# Implementations whose remote does not state the ability, or the other way around.
UNSTATED = (
    "\nOneImage.tags = lambda self: iter(['v1'])"
    "\nOneImage.referrers = OneImage.signatures = lambda self, descriptor, **options: iter(())"
    "\nOneImageRemote.list_repositories = lambda self, host: iter(['a'])\n"
)


@pytest.mark.parametrize(("use", "expected"), USES.values(), ids=USES)
@pytest.mark.parametrize("more", ["", UNSTATED], ids=["missing", "unstated"])
def test_a_missing_ability_is_one_line_that_names_the_remote(
    install: Install, remotes: Remotes, use: Callable[[Remotes], object], expected: str, more: str
) -> None:
    install(REMOTE + more)
    with pytest.raises(Unsupported) as caught:
        use(remotes)
    assert str(caught.value) == expected


def test_a_stated_ability_reaches_the_plugin(install: Install, remotes: Remotes) -> None:
    install(REMOTE + UNSTATED + "\nOneImageRemote.abilities = frozenset({'tags', 'referrers', 'repositories'})\n")
    source = remotes.open_source(pin())
    assert list(source.tags()) == ["v1"]
    assert [*source.referrers(ROOT), *source.signatures(ROOT)] == []
    assert list(remotes.list_repositories("pin:app")) == ["a"]


@pytest.mark.parametrize(
    ("method", "use", "expected"),
    [
        ("tags = lambda self: iter([1])", lambda source: source.tags(), "tags: expected str, got int"),
        ("tags = lambda self: iter(['a\\x1b[31m'])", lambda source: source.tags(), "tags: expected a tag, got 'a\\x1b[31m'"),
        ("referrers = lambda self, d, **o: iter([d.digest])", lambda source: source.referrers(ROOT), "expected Descriptor"),
        ("signatures = lambda self, d, **o: iter([d])", lambda source: source.signatures(ROOT), "expected tuple"),
        ("signatures = lambda self, d, **o: iter([(d, d)])", lambda source: source.signatures(ROOT), "expected pairs"),
    ],
)
def test_wrong_items_of_lists_are_named(
    install: Install, remotes: Remotes, method: str, use: Callable[[Source], Iterator[object]], expected: str
) -> None:
    install(f"{REMOTE}\nOneImage.{method}\nOneImageRemote.abilities = frozenset({{'tags', 'referrers'}})\n")
    with pytest.raises(PluginError) as caught:
        list(use(remotes.open_source(pin())))
    check_message(caught.value, PLUGIN, expected)


def test_every_method_of_a_target_is_checked(install: Install, remotes: Remotes) -> None:
    methods = [name for name in vars(Target) if not name.startswith("_")]
    install(REMOTE + "\nfrom prefect_dist.remotes import Target\nclass Bad(Target):\n" + "".join(
        f"    def {name}(self, *a, **o):\n        raise KeyError('{name}')\n" for name in methods
    ) + "OneImageRemote.open_target = lambda self, reference: Bad()\nOneImageRemote.abilities = frozenset({'push'})\n"
    )  # fmt: skip
    target = remotes.open_target(pin())
    calls: dict[str, Callable[[], object]] = {
        "has": lambda: target.has(ROOT),
        "check_image": lambda: target.check_image([ROOT]),
        "mount": lambda: target.mount(ROOT),
        "upload": lambda: target.upload(ROOT, lambda _: iter(()), observer=lambda *_: None),
        "put": lambda: target.put(RAW, ROOT),
        "list_referrer": lambda: target.list_referrer(OTHER, ROOT),
        "delete_tag": lambda: target.delete_tag("v1"),
        "delete": lambda: target.delete(OTHER),
    }
    assert calls.keys() == set(methods)
    for name, call in calls.items():
        with pytest.raises(PluginError, match=f"{name}(:| failed: KeyError: '{name}')"):
            call()


def test_the_abilities_are_those_of_the_type() -> None:
    from typing import get_args

    assert set(get_args(Ability)) == {"tags", "repositories", "referrers", "push"}


# Credentials.


CONTEXT = "\nCONTEXTS = []\ndef make(context):\n    CONTEXTS.append(context)\n    return OneImageRemote()\n"


@pytest.fixture
def context(install: Install, remotes: Remotes) -> PluginContext:
    install(REMOTE + CONTEXT)
    remotes.open_source(pin())
    import broken

    [context] = broken.CONTEXTS
    assert isinstance(context, PluginContext)
    return context


def test_a_plugin_gets_the_credentials_of_its_own_locator(context: PluginContext) -> None:
    assert context.find_credentials("pin:app") == SECRETS["pin:app"]
    assert context.find_credentials("pin:https://host.example/x") == SECRETS["pin:https://host.example/x"]


@pytest.mark.parametrize(
    "locator",
    [
        "host.example",
        "host.example/x",
        "docker.io/library/x",
        "docker://docker.io/library/x",
        "own:app",
        "oci:/srv/layout",
        "PIN:app",
        "Pin:app",
        "pin:app:v1",
        f"pin:app@{OTHER}",
        "pin:",
        "pin:https://user@host.example/x",
        "",
    ],
)
def test_a_plugin_gets_no_credentials_of_another_locator(context: PluginContext, locator: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        context.find_credentials(locator)
    check_message(caught.value, hides=["secret"])


@pytest.mark.parametrize(
    "locator",
    ["pin:../host.example", "pin:x://host.example", "pin:https://host.example", "pin:docker.io", "pin:App", "pin:app/x"],
)
def test_another_spelling_of_a_locator_has_no_credentials(context: PluginContext, locator: str) -> None:
    assert context.find_credentials(locator) is None


def test_the_context_has_only_the_scheme_and_two_functions(context: PluginContext) -> None:
    assert [field.name for field in dataclasses.fields(context)] == ["scheme", "open_source", "find_credentials"]
    assert context.scheme == "pin"
    assert "secret" not in repr(context)
    with pytest.raises(AttributeError):
        _ = context.open_source.__self__  # type: ignore[attr-defined]  # a bound method would lead to the remotes
