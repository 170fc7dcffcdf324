import { dictionary } from "./dictionary";

export const login = dictionary({
  "login.title": ["Log in", "登录"],
  "login.name": ["Name", "名称"],
  "login.password": ["Password", "密码"],
  "login.password-again": ["The password once more", "再次输入密码"],
  "login.password.hint": ["At least 12 characters", "至少 12 个字符"],
  "login.too-short": ["Use at least 12 characters", "请至少使用 12 个字符"],
  "login.differ": ["The two passwords differ", "两次输入的密码不一致"],
  "login.needed": ["Fill this in", "请填写此项"],
  "login.go": ["Log in", "登录"],
  "login.wrong": ["Name or password is wrong.", "名称或密码错误。"],
  "login.oidc": ["Log in with your organisation", "使用组织账号登录"],
  "login.or": ["or", "或"],
  "login.first": [
    "Nobody has an account yet. Open the link that `llmos up` printed; this command makes a new one:",
    "还没有任何账号。请打开 `llmos up` 打印的链接；以下命令可生成新链接：",
  ],
  "login.link.first": ["Make the first account", "创建第一个账号"],
  "login.link.first.about": [
    "It administers this coordinator: it may invite others and give them roles.",
    "该账号管理此协调器：可以邀请他人并分配角色。",
  ],
  "login.link.invite": ["Welcome, {name}", "欢迎，{name}"],
  "login.link.invite.about": [
    "Choose a password. You were invited as {role}.",
    "请设置密码。您受邀的角色是{role}。",
  ],
  "login.link.reset": ["A new password for {name}", "为 {name} 设置新密码"],
  "login.link.reset.about": [
    "All other sessions of this account end when it is set.",
    "设置后，该账号的所有其他会话都会结束。",
  ],
  "login.link.ends": ["The link works until {at}.", "链接有效期至 {at}。"],
  "login.link.go": ["Set password and log in", "设置密码并登录"],
  "login.link.dead": ["This link no longer works", "此链接已失效"],
  "login.link.dead.about": [
    "It was used, has expired, or is incomplete. Ask an administrator for a new one, or run",
    "链接已被使用、已过期或不完整。请向管理员索取新链接，或运行",
  ],
  "login.change": ["Change password", "修改密码"],
  "login.change.about": ["Your other sessions end at once.", "您的其他会话会立即结束。"],
  "login.change.old": ["Present password", "当前密码"],
  "login.change.new": ["New password", "新密码"],
  "login.change.done": ["The password is changed", "密码已修改"],
  "login.instead": ["Log in with a password instead", "改用密码登录"],
});
