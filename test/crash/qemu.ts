/** QEMU's word on a state that a power cut left. */
import { spawnSync } from 'node:child_process';
import * as fs from 'node:fs';
import * as path from 'node:path';
import type { Storage } from '../../src/storage/storage';
import { BASE_NAME, type CrashFiles, type CrashImage, DATA_NAME } from './images';

const FLAG_ERROR = 'ERROR OFLAG_COPIED';

export class Qemu {
  judged = 0;

  /** @param directory where the files go */
  constructor(private readonly directory: string) {}

  static get isThere(): boolean {
    return spawnSync('qemu-img', ['--version']).status === 0;
  }

  /**
   * @param disk what it reads as for us
   * @param snapshot the same of one of its snapshots
   * @returns what QEMU finds wrong or reads otherwise
   */
  judge(
    { image, unknownToQemu }: CrashImage,
    { written: [top, data], base }: CrashFiles,
    disk: Uint8Array,
    options: { flagsMayBeWrong?: boolean; snapshot?: { id: string; bytes: Uint8Array } } = {},
  ): string | undefined {
    if (unknownToQemu === true) return undefined;
    this.judged++;
    this.write('image', contentOf(top));
    if (data !== undefined) this.write(DATA_NAME, contentOf(data));
    if (base !== undefined) this.write(BASE_NAME, contentOf(base));
    this.write('plain', disk);
    return (
      this.check(image.format, options.flagsMayBeWrong === true) ??
      this.same(['compare', '-f', image.format, '-F', 'raw', 'image', 'plain']) ??
      this.snapshot(options.snapshot)
    );
  }

  private check(format: string, flagsMayBeWrong: boolean): string | undefined {
    const { status, output } = this.run(['check', '-f', format, 'image']);
    // Clean, leaks only, or a format without checks.
    if (status === 0 || status === 3 || (status === 63 && format === 'qcow')) return undefined;
    const errors = output.split('\n').filter((line) => line.startsWith('ERROR'));
    if (status === 2 && flagsMayBeWrong && errors.length > 0 && errors.every((line) => line.startsWith(FLAG_ERROR))) {
      return undefined;
    }
    return `qemu-img check: exit code ${status}: ${errors.slice(0, 3).join('; ') || output.slice(0, 300)}`;
  }

  private snapshot(snapshot: { id: string; bytes: Uint8Array } | undefined): string | undefined {
    if (snapshot === undefined) return undefined;
    this.write('plain', snapshot.bytes);
    const failed = this.same([
      'convert',
      '-f',
      'qcow2',
      '-O',
      'raw',
      '-l',
      `snapshot.id=${snapshot.id}`,
      'image',
      'converted',
    ]);
    return failed ?? this.same(['compare', '-f', 'raw', '-F', 'raw', 'converted', 'plain']);
  }

  private same(words: string[]): string | undefined {
    const { status, output } = this.run(words);
    return status === 0 ? undefined : `qemu-img ${words[0]}: exit code ${status}: ${output.slice(0, 300)}`;
  }

  private run(words: string[]): { status: number | null; output: string } {
    const { status, stdout, stderr } = spawnSync('qemu-img', words, { cwd: this.directory, encoding: 'utf8' });
    return { status, output: `${stdout}${stderr}` };
  }

  private write(name: string, bytes: Uint8Array): void {
    fs.writeFileSync(path.join(this.directory, name), bytes);
  }
}

function contentOf(storage: Storage): Uint8Array {
  const bytes = new Uint8Array(storage.size());
  storage.read(0, bytes, 0, bytes.length);
  return bytes;
}
