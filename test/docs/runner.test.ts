import { execFile } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { readTap } from '../../scripts/tap';
import { IS_ROOT, leaveOut, ROOT } from './run-script';

const RUNNER = path.join(ROOT, 'dist', 'scripts', 'run-tests.js');

interface Run {
  code: number;
  lines: string[];
  output: string;
}

/** Runs test files with these bodies through the real runner; returns its output and exit code. */
function runFiles(
  t: ExecutionContext,
  bodies: Record<string, string>,
  { args = [], seconds = 100 }: { args?: string[]; seconds?: number } = {},
): Promise<Run> {
  const directory = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-runner-'));
  t.teardown(() => fs.rmSync(directory, { recursive: true, force: true }));
  fs.symlinkSync(path.join(ROOT, 'node_modules'), path.join(directory, 'node_modules'));
  const files = Object.entries(bodies).map(([name, body]) => {
    const file = path.join(directory, `${name}.test.js`);
    fs.writeFileSync(file, `const test = require('ava').default ?? require('ava');\n${body}\n`);
    return file;
  });
  const env = { ...process.env, IMAGEFS_TEST_FILE_SECONDS: String(seconds), TMPDIR: directory };
  return new Promise((resolve) => {
    execFile(process.execPath, [RUNNER, ...args, ...files], { env }, (error, output) => {
      const code = error === null ? 0 : Number(error.code);
      resolve({ code, lines: output.trimEnd().split('\n'), output });
    });
  });
}

test('run-tests ends with the totals and exit code 0 when everything passed', async (t) => {
  const { code, lines } = await runFiles(t, { good: `test('one', t => t.pass()); test('two', t => t.pass());` });
  t.is(lines.at(-1), '2 passed, 0 failed');
  t.is(code, 0);
});

test('run-tests counts failing tests and repeats their output at the end', async (t) => {
  const { code, lines, output } = await runFiles(t, {
    bad: `test('is good', t => t.pass()); test('is bad', t => { t.log('because'); t.is(1, 2); });`,
  });
  t.is(lines.at(-1), '1 passed, 1 failed');
  t.is(code, 1);
  const end = output.slice(output.indexOf('What failed:'));
  t.regex(end, /is bad/);
  t.regex(end, /because/);
  t.regex(end, /t\.is\(\)/);
});

test('run-tests counts a crash, a file without tests and a killed file as failures', async (t) => {
  const { code, lines, output } = await runFiles(t, {
    crash: `test('stays', t => t.pass()); setTimeout(() => { throw new Error('out of the blue'); }, 10);
            test('waits', async t => { await new Promise(() => setTimeout(() => {}, 2000)); });`,
    empty: '',
    killed: `test('dies', () => process.kill(process.pid, 'SIGKILL'));`,
  });
  const totals = /^(\d+) passed, (\d+) failed$/.exec(lines.at(-1) ?? '');
  t.truthy(totals);
  t.true(Number(totals![2]) >= 3);
  t.is(code, 1);
  for (const name of ['crash', 'empty', 'killed']) t.regex(output, new RegExp(`✖ .*${name}\\.test\\.js`));
});

test('run-tests stops a file that hangs, ends what it left behind and says so', async (t) => {
  const { code, lines, output } = await runFiles(
    t,
    {
      hangs: `test('hangs', async t => {
      const child = require('child_process').spawn('sleep', ['600'], { detached: true, stdio: 'ignore' });
      child.unref();
      await new Promise(() => setInterval(() => {}, 1000));
    });`,
    },
    // Long enough for ava to start the file beside whatever else the machine does.
    { seconds: 15 },
  );
  t.is(code, 1);
  t.is(lines.at(-1), '0 passed, 2 failed');
  t.regex(output, /hangs\.test\.js: stopped: not finished after 15 s/);
  const left = /left behind: process (\d+): sleep 600/.exec(output);
  t.truthy(left);
  // Ended: gone, or a zombie that nobody has collected yet.
  const status = `/proc/${left![1]}/cmdline`;
  t.true(!fs.existsSync(status) || fs.readFileSync(status, 'utf8') === '');
});

test('run-tests removes mounts and loop devices that were left behind and says so', async (t) => {
  if (!IS_ROOT) return leaveOut(t, 'mounting needs root');
  const { code, lines, output } = await runFiles(t, {
    leaves: `test('leaves a mount', t => {
      require('child_process').execSync('cd $TMPDIR && mkdir a && truncate -s 8M disk && mkfs.ext4 -q disk && mount -o loop disk a');
      t.pass();
    });`,
  });
  t.is(lines.at(-1), '1 passed, 2 failed', output);
  t.is(code, 1);
  const loop = /left behind: loop device (\/dev\/loop\d+)/.exec(output);
  t.truthy(loop);
  t.regex(output, /left behind: mount .*\/a$/m);
  t.notRegex(output, /could not remove/);
  t.false(fs.readFileSync('/proc/self/mounts', 'utf8').includes(`${loop![1]} `));
});

test('run-tests counts steps that failed before it', async (t) => {
  const { code, lines } = await runFiles(
    t,
    { good: `test('one', t => t.pass());` },
    { args: ['--failed', 'lint: see above'] },
  );
  t.is(lines.at(-1), '1 passed, 1 failed');
  t.is(code, 1);
});

test('readTap() takes a report without its plan for a crash', (t) => {
  const whole = 'TAP version 13\nok 1 - one\n\n1..1\n# tests 1\n# pass 1\n# fail 0\n';
  t.deepEqual(readTap(whole, 0), { passed: 1, skipped: [], failures: [] });
  t.is(readTap('TAP version 13\nok 1 - one\n', 1).failures.length, 1);
  t.is(readTap('TAP version 13\nok 1 - one\n', 0).failures.length, 1);
  t.is(readTap(whole, 1).failures.length, 1);
  t.is(readTap('', null).failures.length, 1);
});

test('readTap() counts tests that never finished', (t) => {
  const text = 'TAP version 13\nok 1 - one\n# 2 tests remaining in x.test.js\n\n1..3\n';
  t.is(readTap(text, 1).failures.length, 2);
});
