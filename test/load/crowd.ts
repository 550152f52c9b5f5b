/** 64 jobs of fio on eight images of one mount, all formats, while the daemon's memory is capped. Every block is verified. */
import { spawn } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import { command as create } from '../../src/cli/commands/create';
import { MountTable } from '../../src/daemon/mountinfo';
import { type DaemonProcess, daemonOf, findDaemons } from '../../src/daemon/processes';
import { MIB } from '../../src/units';
import { checkFile } from '../helpers/images';
import { IMAGEFS, imagefs, run } from '../mount/cli';
import { type MemoryCap, memoryOf } from './memory-cap';

export const JOBS_PER_IMAGE = 8;
export const JOB_BYTES = 4 * MIB;

/** File name, options of create. The last two have a backing file beside them. */
const IMAGES: readonly [string, ...string[]][] = [
  ['a.raw'],
  ['b.qed'],
  ['c.qcow2'],
  ['d.qcow2', '-o', 'lazy_refcounts=on,cluster_size=4096'],
  ['e.qcow2', '-o', 'extended_l2=on'],
  ['f.qcow'],
  ['g.qed', '-b', 'a.base', '-F', 'raw'],
  ['h.qcow2', '-b', 'a.base', '-F', 'raw'],
];

export interface CrowdReport {
  seconds: number;
  jobs: number;
  readMiB: number;
  writtenMiB: number;
  operations: number;
  /** Of the process, MiB. */
  peakMiB: number;
  endMiB: number;
  /** Of the control group, with page cache; absent without one. */
  groupPeakMiB?: number;
  atLimit?: number;
}

function prepare(directory: string): string[] {
  const size = String(JOBS_PER_IMAGE * JOB_BYTES);
  fs.writeFileSync(path.join(directory, 'a.base'), Buffer.alloc(JOBS_PER_IMAGE * JOB_BYTES, 'base'));
  return IMAGES.map(([name, ...options]) => {
    const file = path.join(directory, name);
    const words = options.map((word) => (word === 'a.base' ? path.join(directory, word) : word));
    const code = create.run(['-q', '-f', path.extname(name).slice(1), ...words, file, size]);
    if (code !== 0) throw new Error(`create ${name}: exit code ${String(code)}`);
    return file;
  });
}

function jobFile(directory: string, mountpoint: string, images: string[], seconds: number, seed: number): string {
  const lines = [
    '[global]',
    'rw=randwrite',
    'bsrange=4k-128k',
    'direct=1',
    'ioengine=libaio',
    'iodepth=4',
    'fsync=64',
    'verify=crc32c',
    'verify_fatal=1',
    'time_based',
    `runtime=${seconds}`,
    `size=${JOB_BYTES}`,
    `offset_increment=${JOB_BYTES}`,
    `numjobs=${JOBS_PER_IMAGE}`,
    'thread',
    'group_reporting',
    'allow_file_create=0',
    ...images.flatMap((image, index) => [
      `[${path.basename(image)}]`,
      `filename=${path.join(mountpoint, path.basename(image), 'disk')}`,
      `randseed=${seed + index}`,
    ]),
  ];
  const file = path.join(directory, 'jobs.fio');
  fs.writeFileSync(file, `${lines.join('\n')}\n`);
  return file;
}

interface FioResult {
  jobs: {
    jobname: string;
    error: number;
    read: { io_bytes: number; total_ios: number };
    write: { io_bytes: number; total_ios: number };
  }[];
}

function fio(file: string, seconds: number): Promise<FioResult> {
  const limit = (seconds + 300) * 1000;
  return new Promise((resolve, reject) => {
    const output = `${file}.json`;
    const child = spawn('fio', ['--output-format=json', `--output=${output}`, file], {
      stdio: ['ignore', 'ignore', 'pipe'],
      timeout: limit,
      killSignal: 'SIGKILL',
      cwd: path.dirname(file),
    });
    let errors = '';
    child.stderr.on('data', (data: Buffer) => (errors += data.toString()));
    child.once('error', reject);
    child.once('close', (code, signal) => {
      if (code !== 0) reject(new Error(`fio: ${signal ?? `exit code ${code}`}: ${errors.slice(0, 500)}`));
      else resolve(JSON.parse(fs.readFileSync(output, 'utf8').replace(/^[^{]*/, '')) as FioResult);
    });
  });
}

export interface CrowdMount {
  mountpoint: string;
  images: string[];
  daemon: DaemonProcess;
  /** Unmounts, and looks at every image. */
  leave(): Promise<void>;
}

export async function mountCrowd(directory: string, cap?: MemoryCap): Promise<CrowdMount> {
  const mountpoint = path.join(directory, 'mnt');
  fs.mkdirSync(mountpoint);
  const images = prepare(directory);
  const words = [IMAGEFS, 'mount', ...images, mountpoint];
  const [program, args] = cap?.inside(process.execPath, ...words) ?? [process.execPath, words];
  const mounted = await run(program, args);
  if (mounted.code !== 0) throw new Error(`imagefs mount: ${mounted.stderr}`);
  const entry = MountTable.read().find(mountpoint);
  const daemon = entry === undefined ? undefined : daemonOf(entry, findDaemons());
  if (daemon === undefined) throw new Error('nothing serves the mount');
  const leave = async () => {
    const left = await imagefs(['umount', '--wait', mountpoint]);
    if (left.code !== 0) throw new Error(`imagefs umount: ${left.stderr}`);
    for (const image of images) {
      const { corruptions, leaks, checkErrors, messages } = checkFile(image);
      if (corruptions + leaks + checkErrors > 0) throw new Error(`check ${image}: ${messages.slice(0, 3).join('; ')}`);
    }
  };
  return { mountpoint, images, daemon, leave };
}

/** Throws with a line that says what is wrong. */
export async function runCrowd(
  directory: string,
  seconds: number,
  seed: number,
  cap: MemoryCap | undefined,
): Promise<CrowdReport> {
  const { mountpoint, images, daemon, leave } = await mountCrowd(directory, cap);
  const begun = performance.now();
  const result = await fio(jobFile(directory, mountpoint, images, seconds, seed), seconds);
  const memory = memoryOf(daemon.pid);
  const failed = result.jobs.filter(({ error }) => error !== 0);
  if (failed.length > 0)
    throw new Error(`fio: ${failed.map((job) => `${job.jobname}: error ${job.error}`).join(', ')}`);
  await leave();
  const total = (value: (job: FioResult['jobs'][number]) => number) =>
    result.jobs.reduce((sum, job) => sum + value(job), 0);
  const report: CrowdReport = {
    seconds: Math.round((performance.now() - begun) / 1000),
    jobs: images.length * JOBS_PER_IMAGE,
    readMiB: Math.round(total(({ read }) => read.io_bytes) / MIB),
    writtenMiB: Math.round(total(({ write }) => write.io_bytes) / MIB),
    operations: total(({ read, write }) => read.total_ios + write.total_ios),
    peakMiB: Math.round(memory.peak / MIB),
    endMiB: Math.round(memory.now / MIB),
  };
  if (cap === undefined) return report;
  if (cap.killed > 0) throw new Error(`the kernel killed ${cap.killed} processes for want of memory`);
  return { ...report, groupPeakMiB: Math.round((cap.peak ?? 0) / MIB), atLimit: cap.atLimit };
}
