/** A flush that takes long must not stop other programs. The host's disk is a mount of ours whose daemon is stopped: nothing comes back from it. */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import * as fs from 'node:fs';
import * as path from 'node:path';
import test, { type ExecutionContext } from 'ava';
import { createImage, directory, imagefs, isRoot, mount, required, run, until, workspace } from './cli';

const WRITES = 200;

/** A file system of the host, and a function that stops its disk until the one it returns is called. */
async function stoppableFileSystem(t: ExecutionContext, dir: string): Promise<{ place: string; stop(): () => void }> {
  const device = await createImage(t, path.join(dir, 'device.img'), '64M');
  const made = await run('mkfs.ext4', ['-q', device]);
  t.is(made.code, 0, made.stderr);
  const outer = directory(dir, 'outer');
  const { pid } = await mount(t, [device, outer]);
  const place = directory(dir, 'place');
  const mounted = await run('mount', ['-o', 'loop', path.join(outer, 'disk'), place]);
  t.is(mounted.code, 0, mounted.stderr);
  const go = (): void => void process.kill(pid, 'SIGCONT');
  t.teardown(async () => {
    go();
    await run('umount', [place]);
  });
  return {
    place,
    stop: () => {
      process.kill(pid, 'SIGSTOP');
      return go;
    },
  };
}

/** A program that has written to the disk, and flushes when it is told to. */
async function writer(t: ExecutionContext, disk: string): Promise<{ flush(): Promise<unknown> }> {
  const script = `
    const fd = fs.openSync(process.argv[1], 'r+');
    for (let i = 0; i < ${WRITES}; i++) fs.writeSync(fd, Buffer.alloc(65536, i + 1), 0, 65536, i * 65536);
    process.stdin.once('data', () => {
      fs.fsyncSync(fd);
      process.exit();
    });
    process.stdout.write('written');`;
  const child = spawn(process.execPath, ['-e', script, disk], { stdio: ['pipe', 'pipe', 'inherit'] });
  t.teardown(() => child.kill('SIGKILL'));
  await once(child.stdout, 'data');
  return {
    flush: () => {
      child.stdin.write('flush');
      return once(child, 'exit');
    },
  };
}

/** A thread of this process sleeps so that nothing but the disk wakes it. Source: proc(5), /proc/PID/stat. */
function waitsForDisk(pid: number): boolean {
  const tasks = `/proc/${pid}/task`;
  return fs.readdirSync(tasks).some((tid) => /\) D /.test(fs.readFileSync(path.join(tasks, tid, 'stat'), 'latin1')));
}

test('a program that reads is answered while the flush of the only other one takes long', async (t) => {
  const loops = fs.existsSync('/dev/loop-control');
  if (!required(t, isRoot() && loops, 'needs root and loop devices')) return;
  const dir = workspace(t);
  const { place, stop } = await stoppableFileSystem(t, dir);
  const image = await createImage(t, path.join(place, 'vm.qed'), '16M');
  const mnt = directory(dir, 'inner');
  // As many as there will ever be: one that is added would take the seat.
  const { pid } = await mount(t, ['--threads', '2', image, mnt]);
  const { flush } = await writer(t, path.join(mnt, 'disk'));
  const go = stop();
  let isFlushed = false;
  const flushed = flush().then(() => {
    isFlushed = true;
  });
  await until(t, 'the flush', () => waitsForDisk(pid));
  for (let reader = 0; reader < 3; reader++) {
    const read = await run('dd', [`if=${path.join(mnt, 'disk')}`, 'bs=64k', 'count=1', 'status=none']);
    t.is(read.code, 0, read.stderr);
    t.is(read.stdout.length, 65536);
    t.false(isFlushed, 'the flush did not wait for the disk');
  }
  go();
  await flushed;
  t.true(isFlushed);
  // Returns when the daemon has gone: it holds the image.
  const left = await imagefs(['umount', mnt]);
  t.is(left.code, 0, left.stderr);
});
