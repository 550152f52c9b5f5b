/**
 * An ext4 on a loop device over `disk`, written by a program whose memory is capped: what the kernel must write back to get memory
 * goes through the daemon, which needs memory for that. If the two wait for each other, nothing moves.
 *
 * In one group of version 1 they do wait for each other unless the daemon is an IO flusher: a thread of the daemon that meets the limit
 * waits for a page of the loop device to be written, which is what this thread itself must do. So they share one group only where
 * the daemon may be an IO flusher; otherwise each has a group of its own.
 */
import { type ChildProcess, spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { command as create } from '../../src/cli/commands/create';
import { MountTable } from '../../src/daemon/mountinfo';
import { daemonOf, findDaemons } from '../../src/daemon/processes';
import { MIB } from '../../src/units';
import { checkFile } from '../helpers/images';
import { IMAGEFS, imagefs, run } from '../mount/cli';
import { isIoFlusher, type MemoryCap } from './memory-cap';

const DISK_BYTES = 768 * MIB;
/** Nothing was read from or written to the loop device for this long: they wait for each other. */
const STUCK_MS = 120_000;

export interface WritebackReport {
  seconds: number;
  writtenMiB: number;
  ioFlusher: boolean;
  /** Of the daemon's group, with page cache. */
  daemonPeakMiB: number;
  daemonAtLimit: number;
  writerAtLimit: number;
}

async function succeed(program: string, ...args: string[]): Promise<string> {
  const { code, stdout, stderr } = await run(program, args);
  if (code !== 0) throw new Error(`${program} ${args.join(' ')}: ${stderr}`);
  return stdout.trim();
}

/** Sectors read and written so far, and requests in flight. */
function activity(device: string): string {
  return fs.readFileSync(`/sys/block/${path.basename(device)}/stat`, 'utf8');
}

async function endOrStuck(child: ChildProcess, device: string, kill: () => void): Promise<void> {
  let errors = '';
  child.stderr?.on('data', (data: Buffer) => (errors += data.toString()));
  let last = activity(device);
  let since = performance.now();
  let stuck = false;
  const watch = setInterval(() => {
    const now = activity(device);
    if (now !== last) since = performance.now();
    last = now;
    if (performance.now() - since < STUCK_MS) return;
    stuck = true;
    kill();
  }, 1000);
  const code = await new Promise<number | null>((resolve) => child.once('close', resolve));
  clearInterval(watch);
  if (stuck) throw new Error(`nothing moved for ${STUCK_MS / 1000} s: the daemon and writeback wait for each other`);
  if (code !== 0) throw new Error(`the writer ended with exit code ${code}: ${errors.slice(0, 500)}`);
}

/** Throws with a line that says what is wrong. */
export async function runWriteback(
  directory: string,
  seconds: number,
  seed: number,
  caps: { daemon: MemoryCap; writer: MemoryCap },
  format: 'qcow2' | 'qed',
): Promise<WritebackReport> {
  const [mountpoint, guest] = ['mnt', 'guest'].map((name) => path.join(directory, name));
  for (const name of [mountpoint, guest]) fs.mkdirSync(name, { recursive: true });
  const image = path.join(directory, `vm.${format}`);
  if (create.run(['-q', '-f', format, image, String(DISK_BYTES)]) !== 0) throw new Error('create failed');
  await succeed(...flat(caps.daemon.inside(process.execPath, IMAGEFS, 'mount', image, mountpoint)));
  const entry = MountTable.read().find(mountpoint);
  const daemon = entry === undefined ? undefined : daemonOf(entry, findDaemons());
  if (daemon === undefined) throw new Error('nothing serves the mount');
  const ioFlusher = isIoFlusher(daemon.pid);
  const device = await succeed('losetup', '-f', '--show', path.join(mountpoint, 'disk'));
  const begun = performance.now();
  let writtenMiB = 0;
  try {
    await succeed('mkfs.ext4', '-q', device);
    await succeed('mount', device, guest);
    // Buffered writes of twice the disk's page cache share, again and again, and every byte is read back and verified.
    const output = path.join(directory, 'writeback.json');
    const [program, args] = caps.writer.inside(
      'fio',
      '--output-format=json',
      `--output=${output}`,
      '--name=writeback',
      `--directory=${guest}`,
      '--numjobs=2',
      '--thread',
      '--rw=randwrite',
      '--bsrange=4k-256k',
      '--size=280M',
      '--ioengine=psync',
      '--end_fsync=1',
      '--verify=crc32c',
      '--verify_fatal=1',
      '--time_based',
      `--runtime=${seconds}`,
      `--randseed=${seed}`,
    );
    const child = spawn(program, args, { stdio: ['ignore', 'ignore', 'pipe'], cwd: directory });
    await endOrStuck(child, device, () => void run('umount', ['-f', mountpoint]));
    const result = JSON.parse(fs.readFileSync(output, 'utf8').replace(/^[^{]*/, '')) as {
      jobs: { error: number; write: { io_bytes: number } }[];
    };
    if (result.jobs.some(({ error }) => error !== 0)) throw new Error('fio found a block that is not what it wrote');
    writtenMiB = Math.round(result.jobs.reduce((sum, { write }) => sum + write.io_bytes, 0) / MIB);
    await succeed('umount', guest);
    await succeed('e2fsck', '-fn', device);
  } finally {
    await run('umount', [guest]);
    await run('losetup', ['-d', device]);
  }
  const left = await imagefs(['umount', '--wait', mountpoint]);
  if (left.code !== 0) throw new Error(`imagefs umount: ${left.stderr}`);
  const { corruptions, checkErrors, leaks, messages } = checkFile(image);
  if (corruptions + checkErrors + leaks > 0) throw new Error(`check: ${messages.slice(0, 3).join('; ')}`);
  const killed = caps.daemon.killed + caps.writer.killed;
  if (killed > 0) throw new Error(`the kernel killed ${killed} processes for want of memory`);
  return {
    seconds: Math.round((performance.now() - begun) / 1000),
    writtenMiB,
    ioFlusher,
    daemonPeakMiB: Math.round((caps.daemon.peak ?? 0) / MIB),
    daemonAtLimit: caps.daemon.atLimit,
    writerAtLimit: caps.writer.atLimit,
  };
}

function flat([program, args]: [string, string[]]): [string, ...string[]] {
  return [program, ...args];
}
