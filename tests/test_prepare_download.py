"""The download of Omniglot, against a web server on 127.0.0.1."""

import hashlib
import http.server
import threading

import pytest
from prepare_data import OMNIGLOT, assert_refused, assert_resized, load_omniglot, omniglot, pack, run


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        data = self.server.files[self.path]
        self.server.requests.append(self.path)
        self.send_response(200)
        self.send_header('Content-Length', str(len(data)))
        self.end_headers()
        self.wfile.write(data[: self.server.break_at])

    def log_message(self, *_):
        pass


@pytest.fixture
def site(tmp_path, monkeypatch):
    """(server, script as a module): two small archives on a server, and their MD5s in the script's table."""
    pixels = omniglot(tmp_path / 'published')
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    server.pixels, server.files, server.requests, server.break_at = pixels, {}, [], None
    script, md5s = load_omniglot(monkeypatch), {}
    for subset in ('images_background', 'images_evaluation'):
        (tmp_path / subset).mkdir()
        (tmp_path / 'published' / subset).rename(tmp_path / subset / subset)
        data = pack('zip', tmp_path / subset, tmp_path / f'{subset}.zip').read_bytes()
        server.files[f'/python/{subset}.zip'] = data
        md5s[f'{subset}.zip'] = hashlib.md5(data).hexdigest()
    monkeypatch.setattr(script, 'ARCHIVES', md5s)
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    server.arguments = ['--download', f'--url=http://127.0.0.1:{server.server_port}/python']
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield server, script
    server.shutdown()
    server.server_close()


def assert_stops(script, arguments, capsys, *words):
    with pytest.raises(SystemExit) as stop:
        script.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert len(error.splitlines()) == 1, error
    for word in words:
        assert word in error


def test_download(site, tmp_path):
    server, script = site
    arguments = [*server.arguments, f'--dest={tmp_path / "dest"}']
    script.main(arguments)
    assert_resized(tmp_path / 'dest', server.pixels)
    assert server.requests == list(server.files)
    script.main(arguments)
    assert len(server.requests) == 2  # nothing is fetched again


def test_download_that_breaks_off(site, tmp_path, capsys):
    server, script = site
    arguments, server.break_at = [*server.arguments, f'--dest={tmp_path / "dest"}'], 100
    assert_stops(script, arguments, capsys, 'images_background.zip', 'IncompleteRead(100 bytes read', 'run again')
    assert not list(tmp_path.glob('dest/*'))
    server.break_at = None
    script.main(arguments)
    assert_resized(tmp_path / 'dest', server.pixels)


def test_download_refuses_a_wrong_md5(site, tmp_path, capsys):
    server, script = site
    server.files['/python/images_evaluation.zip'] += b'changed'
    arguments = [*server.arguments, f'--dest={tmp_path / "dest"}']
    expected = script.ARCHIVES['images_evaluation.zip']
    assert_stops(script, arguments, capsys, 'images_evaluation.zip', f'not {expected}')
    assert [path.name for path in (tmp_path / 'dest').iterdir()] == ['images_background.zip']


@pytest.mark.parametrize('url', ['http://127.0.0.1:1', 'no-such-scheme'])
def test_download_without_network(tmp_path, monkeypatch, url):
    monkeypatch.setenv('no_proxy', '127.0.0.1')
    result = run(OMNIGLOT, '--download', f'--url={url}', f'--dest={tmp_path / "dest"}')
    assert_refused(result, f'cannot fetch {url}/images_background.zip', '--source')


def test_published_md5s(monkeypatch):
    assert load_omniglot(monkeypatch).ARCHIVES == {
        'images_background.zip': '68d2efa1b9178cc56df9314c21c6e718',
        'images_evaluation.zip': '6b91aef0f799c5bb55b94e3f2daec811',
    }
