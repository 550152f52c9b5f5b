/**
 * `npm run test:load`: the long runs with real daemons, and a report at the end. Exit code 0 when nothing was found.
 *
 *   npm run test:load -- --only kill,full --rounds 200 --seed 7
 */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as os from 'node:os';
import * as path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { removeDirectory, removeLeftovers } from '../../scripts/leftovers';
import { MIB } from '../../src/units';
import { Random } from '../helpers/random';
import { isRoot } from '../mount/cli';
import { runCrowd } from './crowd';
import { haveFio } from './fio';
import { runFull, runLostSync, type SmallHost, smallExt4, smallTmpfs, succeed } from './full';
import { type KillCounts, KilledImage, noCounts } from './kill';
import { IMAGE_KINDS } from './kill-images';
import { MemoryCap } from './memory-cap';
import { type Census, type MountWay, mountOnce, preparePlace, takeCensus } from './mount-loop';
import { noReverts, REVERT_KINDS, type RevertCounts, RevertedImage } from './revert';
import { runWriteback } from './writeback';

const PARTS = ['kill', 'revert', 'full', 'crowd', 'writeback', 'mounts'] as const;
type Part = (typeof PARTS)[number];

const HELP = `Usage: npm run test:load -- [OPTION]...
  --only PART,...   of ${PARTS.join(', ')} (default: all)
  --rounds N        kills of a daemon, of each of kill and revert (default 300)
  --seconds N       of each run with fio (default 120)
  --mounts N        mounts and unmounts (default 10000)
  --from N          number of the first mount, to go on where a run was stopped (default 0)
  --seed N          (default: a new one, printed)
Needs root; fio and qemu-img make it complete.`;

interface Settings {
  rounds: number;
  seconds: number;
  mounts: number;
  from: number;
  seed: number;
}

class Report {
  readonly lines: string[] = [];
  findings = 0;

  say(line: string): void {
    this.lines.push(line);
    console.log(line);
  }

  finding(line: string): void {
    this.findings++;
    this.say(`FOUND ${line}`);
  }

  /** @param name of what failed, so that it can be run again */
  async attempt(name: string, act: () => Promise<string>): Promise<void> {
    try {
      this.say(`${name}: ${await act()}`);
    } catch (error) {
      this.finding(`${name}: ${error instanceof Error ? error.message : String(error)}`);
    }
  }
}

/** Images die one after the other, each for a few rounds; the seed of each image is printed when it finds something. */
async function kill(directory: string, settings: Settings, report: Report): Promise<void> {
  const total: KillCounts = noCounts();
  const ROUNDS_PER_IMAGE = 6;
  const qemu = spawnSync('qemu-img', ['--version']).status === 0;
  for (let index = 0; total.rounds < settings.rounds && report.findings < 5; index++) {
    const seed = settings.seed + index;
    const kind = IMAGE_KINDS[seed % IMAGE_KINDS.length];
    const own = path.join(directory, `kill-${index}`);
    fs.mkdirSync(own);
    const rounds = Math.min(ROUNDS_PER_IMAGE, settings.rounds - total.rounds);
    const random = new Random(seed);
    const image = new KilledImage({ directory: own, kind, random, rounds, qemu, fio: haveFio(), lifeMs: 3000 });
    try {
      await image.live();
      fs.rmSync(own, { recursive: true });
    } catch (error) {
      report.finding(`kill, --seed ${seed}, ${kind.name}, cluster size ${image.image.clusterSize}: ${String(error)}`);
    }
    for (const name of Object.keys(total) as (keyof KillCounts)[]) total[name] += image.counts[name];
    if (image.counts.rounds === 0) break;
  }
  const counts = Object.entries(total).map(([name, count]) => `${name} ${count}`);
  report.say(`kill: ${counts.join(', ')}`);
}

/** The same for those that are killed while they revert. A run of which one outcome was never seen proves too little. */
async function revert(directory: string, settings: Settings, report: Report): Promise<void> {
  const total: RevertCounts = noReverts();
  const ROUNDS_PER_IMAGE = 8;
  const qemu = spawnSync('qemu-img', ['--version']).status === 0;
  for (let index = 0; total.rounds < settings.rounds && report.findings < 5; index++) {
    const seed = settings.seed + index;
    const kind = REVERT_KINDS[seed % REVERT_KINDS.length];
    const own = path.join(directory, `revert-${index}`);
    fs.mkdirSync(own);
    const rounds = Math.min(ROUNDS_PER_IMAGE, settings.rounds - total.rounds);
    const image = new RevertedImage({ directory: own, kind, random: new Random(seed), rounds, qemu });
    try {
      await image.live();
      fs.rmSync(own, { recursive: true });
    } catch (error) {
      report.finding(`revert, --seed ${seed}, ${kind.name}, cluster size ${image.image.clusterSize}: ${String(error)}`);
    }
    for (const name of Object.keys(total) as (keyof RevertCounts)[]) total[name] += image.counts[name];
    if (image.counts.rounds === 0) break;
  }
  const counts = Object.entries(total).map(([name, count]) => `${name} ${count}`);
  report.say(`revert: ${counts.join(', ')}`);
  if (total.acknowledged === 0 || total.cutDone === 0 || total.cutUndone === 0) {
    report.finding('revert: acknowledged, cut off and done, cut off and not done: one of them never happened');
  }
}

const FULL_FORMATS: readonly [string, string[]][] = [
  ['raw', []],
  ['qed', []],
  ['qed', ['-o', 'cluster_size=4096']],
  ['qcow2', []],
  ['qcow2', ['-o', 'cluster_size=512']],
  ['qcow2', ['-o', 'lazy_refcounts=on']],
  ['qcow2', ['-o', 'extended_l2=on']],
  ['qcow', []],
];

async function full(directory: string, _settings: Settings, report: Report): Promise<void> {
  let index = 0;
  const hosts: [string, (host: string) => Promise<SmallHost>][] = [
    ['tmpfs', (host) => smallTmpfs(host, 6 * MIB)],
    ['ext4', (host) => smallExt4(host, 6 * MIB)],
  ];
  for (const [hostName, make] of hosts) {
    for (const [format, options] of FULL_FORMATS) {
      for (const end of ['room', 'kill'] as const) {
        const own = path.join(directory, `full-${index++}`);
        fs.mkdirSync(own);
        await report.attempt(`full: ${format} ${options.join(' ')} on ${hostName}, ${end}`, async () => {
          const host = await make(path.join(own, 'host'));
          const { written, codes } = await runFull(host, path.join(own, 'mnt'), format, options, end);
          await succeed('umount', host.directory);
          return `${written} blocks were written, then ${codes.join(', ')}`;
        });
      }
    }
  }
  for (const format of ['raw', 'qed', 'qcow2', 'qcow']) {
    const own = path.join(directory, `lost-${format}`);
    fs.mkdirSync(own);
    await report.attempt(`lost sync: ${format}`, async () => {
      return `syncs failed with ${(await runLostSync(own, path.join(own, 'mnt'), format)).join(', ')}`;
    });
  }
}

async function withCaps(sizes: number[], report: Report, act: (caps: MemoryCap[]) => Promise<void>): Promise<void> {
  const caps: MemoryCap[] = [];
  try {
    for (const size of sizes) {
      const cap = MemoryCap.create(`imagefs-load-${caps.length}`, size);
      if (typeof cap === 'string') return report.say(`not run: ${cap}`);
      caps.push(cap);
    }
    await act(caps);
  } finally {
    await delay(500);
    for (const cap of caps) cap.remove();
  }
}

async function crowd(directory: string, { seconds, seed }: Settings, report: Report): Promise<void> {
  await withCaps([512 * MIB], report, ([cap]) =>
    report.attempt('crowd, 512 MiB', async () => JSON.stringify(await runCrowd(directory, seconds, seed, cap))),
  );
}

async function writeback(directory: string, { seconds, seed }: Settings, report: Report): Promise<void> {
  for (const format of ['qcow2', 'qed'] as const) {
    await withCaps([256 * MIB, 128 * MIB], report, ([daemon, writer]) =>
      report.attempt(`writeback, ${format}, daemon 256 MiB, writer 128 MiB`, async () => {
        const own = path.join(directory, format);
        const result = await runWriteback(own, seconds, seed, { daemon, writer }, format);
        if (result.ioFlusher) return JSON.stringify(result);
        return `${JSON.stringify(result)}; ran without PR_SET_IO_FLUSHER, which needs CAP_SYS_RESOURCE`;
      }),
    );
  }
}

async function mounts(directory: string, { mounts: count, from }: Settings, report: Report): Promise<void> {
  const temporary = process.env.TMPDIR ?? os.tmpdir();
  const place = preparePlace(directory);
  const ways = new Map<MountWay, number>();
  let before: Census | undefined;
  const begun = performance.now();
  await report.attempt('mounts', async () => {
    for (let index = from; index < from + count; index++) {
      const way = await mountOnce(place, index);
      ways.set(way, (ways.get(way) ?? 0) + 1);
      // What is made once, and stays, is there after some.
      if (index === from + 20) before = takeCensus(directory, temporary);
      if (index % 1000 === 999) console.log(`${index + 1 - from} mounts`);
    }
    await delay(500);
    const after = takeCensus(directory, temporary);
    const { left, descriptors, files } = after;
    if (left.length > 0) throw new Error(`left behind: ${left.join('; ')}`);
    if (before !== undefined && descriptors > before.descriptors) {
      throw new Error(`${descriptors} descriptors are open, ${before.descriptors} were`);
    }
    if (before !== undefined && files.length > before.files.length) throw new Error(`files: ${files.join(', ')}`);
    const seconds = Math.round((performance.now() - begun) / 1000);
    const kinds = [...ways].map(([way, number]) => `${way} ${number}`).join(', ');
    return `${count} in ${seconds} s (${kinds}); nothing was left behind, ${descriptors} descriptors as before`;
  });
}

const RUN: Record<Part, (directory: string, settings: Settings, report: Report) => Promise<void>> = {
  kill,
  revert,
  full,
  crowd,
  writeback,
  mounts,
};

function parse(args: string[]): { settings: Settings; parts: Part[] } | undefined {
  const { values } = parseArgs({
    args,
    options: {
      only: { type: 'string' },
      rounds: { type: 'string', default: '300' },
      seconds: { type: 'string', default: '120' },
      mounts: { type: 'string', default: '10000' },
      from: { type: 'string', default: '0' },
      seed: { type: 'string', default: String(Math.floor(Math.random() * 1e6)) },
      help: { type: 'boolean', short: 'h' },
    },
  });
  const words = values.only?.split(',') ?? [...PARTS];
  const parts = PARTS.filter((part) => words.includes(part));
  if (values.help || parts.length !== words.length) return undefined;
  const numbers = [values.rounds, values.seconds, values.mounts, values.from, values.seed].map(Number);
  if (numbers.some((number) => !Number.isSafeInteger(number) || number < 0)) return undefined;
  const [rounds, seconds, count, from, seed] = numbers;
  return { settings: { rounds, seconds, mounts: count, from, seed }, parts };
}

async function main(): Promise<number> {
  const parsed = parse(process.argv.slice(2));
  if (parsed === undefined || !isRoot()) {
    console.error(HELP);
    return 2;
  }
  const root = fs.mkdtempSync(path.join(os.tmpdir(), 'imagefs-load-'));
  const report = new Report();
  report.say(
    `seed ${parsed.settings.seed}, node ${process.version}, kernel ${os.release()}, ${os.cpus().length} cores`,
  );
  for (const part of parsed.parts) {
    if (!haveFio() && (part === 'crowd' || part === 'writeback')) {
      report.say(`${part}: not run: fio is not installed`);
      continue;
    }
    const directory = path.join(root, part);
    fs.mkdirSync(directory);
    await RUN[part](directory, parsed.settings, report);
    for (const line of await removeLeftovers(directory)) report.say(`removed: ${line}`);
    removeDirectory(directory);
  }
  removeDirectory(root);
  console.log(`\nReport\n${report.lines.join('\n')}\n${report.findings} findings`);
  return report.findings === 0 ? 0 : 1;
}

main().then(
  (code) => {
    process.exitCode = code;
  },
  (error: unknown) => {
    console.error(error);
    process.exitCode = 1;
  },
);
