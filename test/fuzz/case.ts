/** One case: an image from its seed number, exercised in a directory of its own. The same number is the same case for ever. */
import { execFileSync } from 'node:child_process';
import fs from 'node:fs';
import * as path from 'node:path';
import { formatNameOf, PROBE_BYTES } from '../../src/formats/registry';
import { Random } from '../helpers/random';
import { Exercise, type Finding, type Result, SECRET_WORDS } from './exercise';
import { LINK, mutate, PIPE, SECRET } from './mutate';
import { BASE_QCOW2, BASE_RAW, KINDS, type Kind, neighbours, type Seed, seedsOf } from './seeds';

export interface Case {
  kind: Kind;
  seed: number;
  index: number;
}

export interface CaseReport extends Result {
  story: string[];
}

/** `open(2)`: Linux, the same on x86-64 and arm64. */
const O_PATH = 0o10000000;

/**
 *   root/                     secret.raw  pipe  base.qcow2
 *   root/images/              image  base.raw  base.qcow2  data.raw  link.raw -> ../secret.raw  pipe
 */
export class CaseRunner {
  private readonly directory: string;
  private readonly image: string;
  private readonly files: Map<string, Buffer>;
  private readonly seeds: readonly Seed[];
  private readonly opened: string[] = [];

  constructor(root: string) {
    this.directory = path.join(fs.realpathSync(root), 'images');
    this.image = path.join(this.directory, 'image');
    fs.mkdirSync(this.directory);
    this.files = neighbours(this.directory);
    this.writeNeighbours();
    this.seeds = KINDS.flatMap((kind) => seedsOf(kind, this.directory));
    this.writeNeighbours();
    fs.writeFileSync(path.join(root, SECRET), Buffer.alloc(64 * 1024, SECRET_WORDS));
    fs.writeFileSync(path.join(root, BASE_QCOW2), this.files.get(BASE_QCOW2) ?? '');
    fs.symlinkSync(`../${SECRET}`, path.join(this.directory, LINK));
    execFileSync('mkfifo', [path.join(root, PIPE), path.join(this.directory, PIPE)]);
    this.watchOpens();
  }

  run(wanted: Case, bytesOnly = false): CaseReport {
    const random = randomOf(wanted);
    const kinds = this.seeds.filter(({ kind }) => kind === wanted.kind);
    const mutant = mutate(random.pick(kinds), random, this.seeds);
    const restore = () => {
      fs.writeFileSync(this.image, mutant.bytes);
      fs.truncateSync(this.image, mutant.length);
      this.writeNeighbours();
    };
    restore();
    if (bytesOnly) return { story: mutant.story, findings: [], check: '', opened: '' };
    const exercise = new Exercise(this.image, formatNameOf(head(this.image, PROBE_BYTES)) === 'raw');
    this.opened.length = 0;
    const before = this.state();
    const { check, opened } = exercise.reading();
    const after = this.state();
    const findings = exercise.findings;
    if (before !== after) findings.push({ step: 'reading', problem: `changed a file: ${before} to ${after}` });
    // The clock of file times may not have moved in between.
    const same = this.files.get(BASE_RAW)?.equals(fs.readFileSync(path.join(this.directory, BASE_RAW)));
    if (!same || !mutant.bytes.equals(head(this.image, mutant.bytes.length))) {
      findings.push({ step: 'reading', problem: 'changed the content of a file' });
    }
    exercise.writing(restore, random);
    findings.push(...this.judgeOpens());
    return { story: mutant.story, findings, check, opened };
  }

  /** Back to what they were, if something has written to them. */
  private writeNeighbours(): void {
    for (const [name, bytes] of this.files) {
      const file = path.join(this.directory, name);
      // It may have grown to gigabytes.
      const same = fs.statSync(file, { throwIfNoEntry: false })?.size === bytes.length;
      if (same && fs.readFileSync(file).equals(bytes)) continue;
      fs.writeFileSync(file, bytes);
    }
  }

  /** Content and times of every file, and which there are. */
  private state(): string {
    const names = fs.readdirSync(this.directory).sort();
    return names
      .map((name) => {
        const file = path.join(this.directory, name);
        const { mtimeMs, size, blocks } = fs.statSync(file);
        return `${name} ${mtimeMs} ${size} ${blocks}`;
      })
      .join(', ');
  }

  /** Every open of the process is written down. */
  private watchOpens(): void {
    const real = fs.openSync;
    const { opened } = this;
    Object.assign(fs, {
      openSync(name: fs.PathLike, ...rest: [number]): number {
        const fd = real(name, ...rest);
        // A descriptor that only knows the file has opened nothing.
        if (typeof rest[0] !== 'number' || Math.floor(rest[0] / O_PATH) % 2 === 0) {
          opened.push(fs.readlinkSync(`/proc/self/fd/${fd}`));
        }
        return fd;
      },
    });
  }

  private judgeOpens(): Finding[] {
    const findings: Finding[] = [];
    for (const name of new Set(this.opened)) {
      if (path.dirname(name) === this.directory || name.startsWith('/memfd:')) continue;
      const stat = fs.statSync(name, { throwIfNoEntry: false });
      const harmless = stat === undefined || stat.isFile() || stat.isBlockDevice();
      if (!harmless) findings.push({ step: 'open', problem: `opened "${name}"` });
    }
    return findings;
  }
}

function randomOf({ kind, seed, index }: Case): Random {
  const mixed =
    Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(index + 1, 0x85ebca6b) ^ Math.imul(KINDS.indexOf(kind) + 1, 0xc2b2ae35);
  return new Random(mixed);
}

function head(file: string, length: number): Buffer {
  const bytes = Buffer.alloc(length);
  const fd = fs.openSync(file, 'r');
  fs.readSync(fd, bytes, 0, length, 0);
  fs.closeSync(fd);
  return bytes;
}
