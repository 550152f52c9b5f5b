import { execFileSync, spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { Worker } from 'node:worker_threads';
import test, { type ExecutionContext } from 'ava';
import { isMountFlag, mount, mountFlagBits, umount, umountAsync } from '../../../src/system/mount';
import { POLLIN, pollDescriptor } from '../../../src/system/poll';
import { setIoFlusher, setProcessName } from '../../../src/system/prctl';
import { isAlive, waitForExit } from '../../../src/system/process';
import { receiveDescriptor, socketPair } from '../../../src/system/socket';

function pairOf(t: ExecutionContext): [number, number] {
  const pair = socketPair();
  t.teardown(() => {
    for (const fd of pair) {
      try {
        fs.closeSync(fd);
      } catch {
        // The test closed it itself.
      }
    }
  });
  return pair;
}

test('receiveDescriptor() throws when the peer closed or wrote without sending one', (t) => {
  const [ours, theirs] = pairOf(t);
  fs.writeSync(theirs, 'x');
  t.throws(() => receiveDescriptor(ours), { code: 'ECONNRESET' });
  fs.closeSync(theirs);
  t.throws(() => receiveDescriptor(ours), { code: 'ECONNRESET' });
});

test('pollDescriptor() resolves with the event, or 0 when the time is over', async (t) => {
  const [ours, theirs] = pairOf(t);
  t.is(await pollDescriptor(ours, POLLIN, 10), 0);
  const waiting = pollDescriptor(ours, POLLIN, 60_000);
  fs.writeSync(theirs, 'x');
  t.is(await waiting, POLLIN);
});

test('waitForExit() sees the end of a process that is not a child', async (t) => {
  // The shell is the parent of sleep and ends first: sleep is then nobody's child here.
  const shell = spawn('sh', ['-c', 'sleep 600 >/dev/null 2>&1 & echo $!'], { stdio: ['ignore', 'pipe', 'ignore'] });
  const [line] = (await once(shell.stdout, 'data')) as [Buffer];
  const pid = Number(line.toString());
  t.true(isAlive(pid));
  t.false(await waitForExit(pid, 5));
  const gone = waitForExit(pid, 60_000);
  process.kill(pid, 'SIGKILL');
  t.true(await gone);
  t.true(await waitForExit(pid, 60_000), 'again, with the process gone');
});

test('isAlive() is true for this process and false for a number no process has', (t) => {
  t.true(isAlive(process.pid));
  t.false(isAlive(2 ** 22 + 1));
});

test('setIoFlusher() and setProcessName() act on the calling thread', async (t) => {
  const worker = new Worker(
    `const { parentPort } = require('node:worker_threads');
     const { setIoFlusher, setProcessName } = require(${JSON.stringify(require.resolve('../../../src/system/prctl'))});
     const result = setIoFlusher();
     setProcessName('imagefs-worker-long-name');
     const fs = require('node:fs');
     parentPort.postMessage({ result, names: fs.readdirSync('/proc/self/task').map((id) => fs.readFileSync('/proc/self/task/' + id + '/comm', 'utf8').trim()) });`,
    { eval: true },
  );
  const [{ result, names }] = (await once(worker, 'message')) as [{ result: boolean; names: string[] }];
  t.is(typeof result, 'boolean');
  t.true(names.includes('imagefs-worker-'), names.join());
  t.is(typeof setIoFlusher, 'function');
  t.is(typeof setProcessName, 'function');
});

test('mountFlagBits() knows the words of mount(8), the later one winning', (t) => {
  t.is(mountFlagBits(['nosuid', 'nodev', 'ro', 'noatime']), 2 + 4 + 1 + 1024);
  t.is(mountFlagBits(['ro', 'rw', 'nosuid']), 2);
  t.true(isMountFlag('nosymfollow'));
  t.false(isMountFlag('growable'));
  t.throws(() => mountFlagBits(['growable']), { code: 'EINVAL' });
});

test('mount() and umount() a tmpfs; errors name the target', async (t) => {
  const target = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-'));
  t.teardown(() => fs.rmdirSync(target));
  try {
    mount('none', target, 'tmpfs', ['nosuid', 'noexec'], 'size=64k');
  } catch (error) {
    t.log(`mount(2) is not permitted here: ${(error as Error).message}`);
    t.not(process.env.IMAGEFS_REQUIRE_ALL, '1');
    return;
  }
  t.teardown(() => {
    try {
      umount(target, { lazy: true });
    } catch {
      // Unmounted by the test, as it should be.
    }
  });
  t.regex(fs.readFileSync('/proc/self/mounts', 'utf8'), new RegExp(`${target} tmpfs .*nosuid,noexec`));
  const inside = fs.openSync(path.join(target, 'file'), 'w');
  await t.throwsAsync(umountAsync(target), { code: 'EBUSY' });
  fs.closeSync(inside);
  await umountAsync(target);
  const error = t.throws(() => umount(target), { code: 'EINVAL' });
  t.true(error.message.includes(target));
  await t.throwsAsync(umountAsync(path.join(target, 'missing')), { code: 'ENOENT' });
  t.notThrows(() => execFileSync('true'));
});
