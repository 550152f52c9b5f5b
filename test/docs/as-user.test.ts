/** `npm test` of somebody who is not root: tests with real mounts pass and clean up, those that need root say so. */
import * as fs from 'node:fs';
import test from 'ava';
import { directory, isRoot, PROJECT, required, run, workspace } from '../mount/cli';

const NOBODY = 65534;
/** Mounts that are left to the end of a test, mounts that end by signals, and a test that only root can run. */
const FILES = ['life', 'signals'].map((name) => `dist/test/mount/${name}.test.js`);

test('tests with mounts pass for a user who is not root', async (t) => {
  if (!required(t, isRoot(), 'needs root to become another user')) return;
  fs.chmodSync('/dev/fuse', 0o666);
  const place = workspace(t);
  // The project may lie where other users cannot go.
  const project = directory(place, 'project');
  t.is((await run('mount', ['-o', 'bind,ro', PROJECT, project])).code, 0);
  const temporary = directory(place, 'tmp');
  fs.chownSync(temporary, NOBODY, NOBODY);
  fs.chmodSync(place, 0o711);
  const { IMAGEFS_REQUIRE_ALL: _, ...env } = process.env;
  const ran = await run(process.execPath, ['dist/scripts/run-tests.js', ...FILES], {
    cwd: project,
    uid: NOBODY,
    gid: NOBODY,
    hangMs: 120_000,
    // Below hangMs: so it says which file hangs.
    env: { ...env, TMPDIR: temporary, HOME: temporary, IMAGEFS_TEST_FILE_SECONDS: '100' },
  });
  t.is(ran.code, 0, `${ran.stdout}${ran.stderr}`);
  t.regex(ran.stdout, /\n\d+ passed, 0 failed\n$/);
  t.regex(ran.stdout, /not run: needs root/);
});
